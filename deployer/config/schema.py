"""The schema of `kdeploy.toml`: every table and key, with its type, default and description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

_NAME = "[a-z]([-a-z0-9]*[a-z0-9])?"
NAME_PATTERN = rf"^{_NAME}$(?!\n)"
NAME_MAX = 46  # keeps Knative's latest-NAME-predictor and KServe's label isvc.NAME-predictor within 63
MODEL_NAME_MAX = 63
PORT_FORWARD = "port-forward"  # the value of `ingress` for requests through the API server


def about(text: str) -> Meta:
    """Describe a key, in the JSON schema and so in editors."""
    return Meta(description=text)


def form(pattern: str, hint: str, *, longest: int | None = None) -> Meta:
    """Limit a text to a pattern, with the hint for an error."""
    # A plain `$` would allow a line break at the end.
    return Meta(pattern=rf"^({pattern})$(?!\n)", max_length=longest, extra={"hint": hint})


def formerly(names: dict[str, str]) -> Meta:
    """Accept other names of values, which users know from elsewhere, for those of a closed set."""
    return Meta(extra={"formerly": names})


_LOWER = "Use lower-case letters, digits and -"
_LABEL = 'Use letters, digits, ".", "_" and "-", in quotes.'
_SOURCE = '{ secret = "NAME", key = "KEY" }'
_INGRESS = f"Write http://ADDRESS, https://HOST or {PORT_FORWARD}."
Name = Annotated[
    str, form(_NAME, f"{_LOWER}, a letter first, at most {NAME_MAX} characters.", longest=NAME_MAX)
]
ModelName = Annotated[
    str,
    form(
        "[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?",
        f'Use letters, digits, ".", "_" and "-", at most {MODEL_NAME_MAX} characters.',
        longest=MODEL_NAME_MAX,
    ),
]
Namespace = Annotated[str, form("[a-z0-9]([-a-z0-9]*[a-z0-9])?", f"{_LOWER}.", longest=63)]
# The names of most Kubernetes objects.
Subdomain = Annotated[str, form("[a-z0-9]([-a-z0-9.]*[a-z0-9])?", f"{_LOWER}, with dots.", longest=253)]
Label = Annotated[str, form("[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", _LABEL, longest=50)]
Python = Annotated[str, form(r"3\.[0-9]+", 'Write a version, such as "3.9".')]
Quantity = Annotated[
    str, form(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?", 'Write a quantity: "2Gi", "500m".')
]
DataKey = Annotated[str, form("[-._A-Za-z0-9]+", f"Write {_SOURCE}.", longest=253)]
Ingress = Annotated[str, form(rf"https?://[^\s/@]+(/.*)?|{PORT_FORWARD}", _INGRESS)]
Endpoint = Annotated[
    str, form(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", "Write a URL (https://HOST), without credentials.")
]
Text = Annotated[str, Meta(min_length=1)]
Texts = tuple[str, ...]
Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]
FixedPort = Annotated[int, Meta(ge=1, le=65535)]
USER_OF_NAMESPACE = "namespace"  # the value of `run-as-user` for a user that the namespace assigns
_USER = 'Write a user ID, or "namespace".'
User = Annotated[int, Meta(ge=1, le=2**31 - 1, extra={"hint": _USER})] | Literal["namespace"]
Metric = Literal["cpu", "memory", "concurrency", "rps", "prometheus"]
Runtime = Literal["python", "python3"]
Format = Literal["zip-store", "default", "tgz", "no-archive"]
# kubectl's short names.
AccessMode = Annotated[
    Literal["ReadWriteMany", "ReadWriteOnce"], formerly({"RWX": "ReadWriteMany", "RWO": "ReadWriteOnce"})
]
# The names before KServe 0.16, which many clusters and guides still use.
OLD_MODES = {"Serverless": "Knative", "RawDeployment": "Standard"}
DeploymentMode = Annotated[Literal["Knative", "Standard"], formerly(OLD_MODES)]


class Table(Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """A table of the file. Its keys have dashes; other keys are an error."""


class Model(Table, frozen=True, kw_only=True):
    """`[model]`: the content of the model archive. Paths are relative to the file's own folder."""

    name: Annotated[ModelName, about("Name of the model in URLs, and of its archive.")]
    version: Annotated[Label, about("Version of the model. The release ID starts with it.")]
    handler: Annotated[Text, about("A file, `file.py:function`, or the name of a TorchServe handler.")]
    serialized_file: Annotated[str | None, about("Weights: .pt, .pth, TorchScript.")] = None
    model_file: Annotated[str | None, about("Python file of the network's class, for a state dict.")] = None
    extra_files: Annotated[
        Texts, about("More files: paths, globs, folders (their contents), or FOLDER/ with its name.")
    ] = ()
    requirements_file: Annotated[str | None, about("Requirements that TorchServe installs on load.")] = None
    config_file: Annotated[
        str | None, about("TorchServe's model-config.yaml. It sets defaults of [serving].")
    ] = None
    runtime: Annotated[Runtime, about("Interpreter of TorchServe's workers for this model.")] = "python"
    archive_format: Annotated[
        Format, about("Stored or deflated .mar, .tar.gz, or a folder. A model store needs a .mar.")
    ] = "zip-store"
    python: Annotated[Python, about("Python of the serving image. Handlers must parse on it.")] = "3.9"
    body: Annotated[
        Literal["adapter", "handler"],
        about("Who reads V1 and V2 bodies. `handler`: it gets requests as TorchServe has them."),
    ] = "adapter"
    v2_rows: Annotated[
        Literal["tensor", "first-dimension"],
        about("A row of V2: an input, as in KServe's envelope, or a slice along the first dimension."),
    ] = "tensor"
    image_modules: Annotated[Texts, about("Modules of the serving image that kdeploy does not know.")] = ()


class Service(Table, frozen=True, kw_only=True):
    """`[service]`: the InferenceService. Not part of the release."""

    name: Annotated[Name | None, about("Name of the InferenceService. Default: the model's.")] = None


class ServiceTables(Table, frozen=True, kw_only=True):
    """`[services.NAME]`: one of several services of the project, chosen by `--service`."""

    serving: Annotated[dict[str, Any], about("Keys of [serving] with another value for this service.")] = (
        field(default_factory=dict)
    )
    scaling: Annotated[dict[str, Any], about("Keys of [scaling] with another value for this service.")] = (
        field(default_factory=dict)
    )
    torchserve: Annotated[
        dict[str, Any], about("Keys of [torchserve] with another value for this service.")
    ] = field(default_factory=dict)


class VariableSource(Table, frozen=True, kw_only=True, omit_defaults=True):
    """A variable's value: a key of a Secret or of a ConfigMap in the service's namespace."""

    key: Annotated[DataKey, about("Key in the Secret or ConfigMap.")]
    secret: Annotated[Subdomain | None, about("Name of the Secret.")] = None
    config_map: Annotated[Subdomain | None, about("Name of the ConfigMap.")] = None


Variable = Annotated[str | VariableSource, Meta(extra={"hint": f"Write text in quotes, or {_SOURCE}."})]
Overlay = dict[str, Any]
Patches = tuple[str | Overlay, ...]


class Serving(Table, frozen=True, kw_only=True):
    """`[serving]`: how the model is served. Part of the release's identity."""

    protocol_version: Annotated[
        Literal["v1", "v2", "grpc-v2"],
        about("Protocol of the InferenceService. v1 and v2: it answers both. grpc-v2: V2 in gRPC."),
    ] = "v1"
    image: Annotated[Text, about("TorchServe's image.")] = "pytorch/torchserve-kfs:0.12.0"
    gpu_image: Annotated[Text, about("TorchServe's image if `gpu` is not 0.")] = (
        "pytorch/torchserve-kfs:0.12.0-gpu"
    )
    runtime: Annotated[
        Subdomain | None, about("ServingRuntime or ClusterServingRuntime of the cluster. Default: kdeploy's.")
    ] = None
    min_workers: Annotated[Positive, about("Minimum number of TorchServe workers.")] = 1
    max_workers: Annotated[Positive, about("Maximum number of TorchServe workers.")] = 1
    batch_size: Annotated[Positive, about("Maximum number of requests per call of the handler.")] = 1
    max_batch_delay: Annotated[Count, about("Milliseconds to wait for a full batch. 0: do not wait.")] = 50
    response_timeout: Annotated[Positive, about("Seconds after which a worker counts as hung.")] = 120
    drain_seconds: Annotated[Count, about("Seconds a replica accepts requests after SIGTERM.")] = 5
    startup_timeout: Annotated[Positive, about("Seconds a worker has to load the model.")] = 120
    gpu: Annotated[Count, about("GPUs per replica (nvidia.com/gpu): limit and request.")] = 0
    cpu: Annotated[Quantity, about("CPU per replica: limit and request.")] = "1"
    memory: Annotated[Quantity, about("Memory per replica: limit and request.")] = "2Gi"
    env: Annotated[
        dict[str, Variable],
        about("Environment of the serving container: text, or a key of a Secret or ConfigMap."),
    ] = field(default_factory=dict)
    max_request_size: Annotated[Positive, about("Maximum size of a request, in bytes.")] = 6_553_500
    max_response_size: Annotated[Positive, about("Maximum size of a response, in bytes.")] = 6_553_500
    metrics_config: Annotated[
        str | None, about("TorchServe's metrics.yaml: names, units and dimensions of metrics.")
    ] = None
    warm_up: Annotated[
        Texts, about("Sample requests that a worker answers before it is ready: paths, globs or folders.")
    ] = ()
    patches: Annotated[Patches, about("YAML files with more of `overlay`, merged before it.")] = ()
    overlay: Annotated[Overlay, about("Fields to merge into the InferenceService.")] = field(
        default_factory=dict
    )


class Scaling(Table, frozen=True, kw_only=True):
    """`[scaling]`: the number of replicas. Not part of the release."""

    min_replicas: Annotated[
        Count, about("Minimum number of replicas. 0 allows scale to zero on Knative.")
    ] = 1
    max_replicas: Annotated[Positive, about("Maximum number of replicas.")] = 1
    metric: Annotated[
        Metric | None,
        about("What replicas are added for. Default: cpu in Standard mode, concurrency in Knative mode."),
    ] = None
    target: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        about("Wanted value per replica: percent of the request, requests, or the query's value."),
    ] = None
    query: Annotated[Text | None, about("PromQL query of the metric prometheus.")] = None
    prometheus: Annotated[Endpoint | None, about("URL of the Prometheus server, as KEDA reaches it.")] = None


class Store(Table, frozen=True, kw_only=True):
    """`[store]`: the model store. It holds no credentials: each cloud has its own places for them."""

    uri: Annotated[
        Text, about("A folder; s3://, gs:// or az:// with a bucket and a prefix; or pvc://CLAIM/PATH.")
    ] = "model-store"
    endpoint: Annotated[Endpoint | None, about("URL of an S3-compatible server. http:// disables TLS.")] = (
        None
    )
    cluster_endpoint: Annotated[
        Endpoint | None, about("URL at which pods reach the S3 server. Default: `endpoint`.")
    ] = None
    region: Annotated[Label | None, about("Region of the bucket. Default: the environment's.")] = None
    virtual_hosted: Annotated[bool, about("Put the bucket into the host: https://BUCKET.s3.example.org.")] = (
        False
    )
    account: Annotated[Label | None, about("Azure storage account.")] = None
    ca_bundle: Annotated[str | None, about("PEM file of the CA of the endpoint's certificate.")] = None
    ca_config_map: Annotated[
        Subdomain | None, about("ConfigMap on the cluster with the same CA, as cabundle.crt.")
    ] = None
    service_account: Annotated[
        Subdomain | None, about("ServiceAccount on the cluster that can read the store. Default: a new one.")
    ] = None
    secret_name: Annotated[
        Subdomain | None, about("Secret on the cluster for the ServiceAccount. Default: a new one.")
    ] = None
    service_account_annotations: Annotated[
        dict[str, str],
        about("Annotations of the ServiceAccount, such as a role's. No Secret is created then."),
    ] = field(default_factory=dict)
    helper_image: Annotated[
        str | None, about("Image of the Pod that mounts a claim. Default: the serving image.")
    ] = None
    create_claim: Annotated[Quantity | None, about("Create a claim of this size if there is none.")] = None
    claim_access_mode: Annotated[AccessMode, about("Access mode of a created claim.")] = "ReadWriteMany"


class LocalTarget(Table, frozen=True, kw_only=True, tag="local", tag_field="kind"):
    """`[targets.NAME]` with `kind = "local"`: a one-node KServe on this machine."""

    namespace: Annotated[Namespace, about("Namespace of the services.")] = "default"
    ingress_host: Annotated[str, about("Address that the ingress listens on.")] = "127.0.0.1"
    ingress_port: Annotated[Port, about("Port of the ingress. 0: any free one.")] = 8081
    torchserve_port: Annotated[
        FixedPort | None,
        about("Another port of the ingress, which needs no Host header if there is one service."),
    ] = None
    state: Annotated[Text, about("Folder of the supervisor's state.")] = ".kdeploy"


class KServeTarget(Table, frozen=True, kw_only=True, tag="kserve", tag_field="kind"):
    """`[targets.NAME]` with `kind = "kserve"`: a namespace of a Kubernetes cluster with KServe."""

    namespace: Annotated[Namespace | None, about("Namespace. Default: the context's.")] = None
    context: Annotated[str | None, about("Context of the kubeconfig. Default: its current one.")] = None
    kubeconfig: Annotated[
        str | None, about("Kubeconfig. Default: KUBECONFIG, ~/.kube/config, or the pod's own.")
    ] = None
    deployment_mode: Annotated[
        DeploymentMode | None, about("KServe's deployment mode. Default: the cluster's.")
    ] = None
    domain_template: Annotated[
        str | None, about("KServe's domainTemplate, if you cannot read its ConfigMap. Default: KServe's.")
    ] = None
    ingress: Annotated[
        Ingress | None, about("Ingress URL (http://ADDRESS), or port-forward. Default: auto-detected.")
    ] = None
    wait_window: Annotated[float, Meta(ge=0, le=600), about("Seconds that Ready must last.")] = 2.0
    history_limit: Annotated[
        int, Meta(ge=1, le=1000), about("Rollouts per service that the journal on the cluster keeps.")
    ] = 20
    run_as_user: Annotated[
        User | None,
        about('User ID of pods, or "namespace". Default: 1000; on OpenShift, the one that it assigns.'),
    ] = None
    patches: Annotated[Patches, about("YAML files with more of `overlay`, merged before it.")] = ()
    overlay: Annotated[
        Overlay, about("Fields to merge into the InferenceService on this target, after `serving.overlay`.")
    ] = field(default_factory=dict)


TargetConfig = LocalTarget | KServeTarget
TorchServeValue = str | int | float | bool


class Config(Table, frozen=True, kw_only=True):
    """All of `kdeploy.toml`."""

    default_target: Annotated[
        str | None, about("Target of a command without --target and KDEPLOY_TARGET.")
    ] = None
    model: Model
    service: Service = field(default_factory=Service)
    services: Annotated[dict[str, ServiceTables], about("Several services of the project, by name.")] = field(
        default_factory=dict
    )
    serving: Serving = field(default_factory=Serving)
    scaling: Scaling = field(default_factory=Scaling)
    store: Store = field(default_factory=Store)
    targets: Annotated[dict[str, TargetConfig], about("Targets for releases, by name.")] = field(
        default_factory=lambda: {"local": LocalTarget()}
    )
    torchserve: Annotated[dict[str, TorchServeValue], about("More keys of config.properties, verbatim.")] = (
        field(default_factory=dict)
    )


def overlays_of(table: Serving | TargetConfig) -> tuple[Overlay, ...]:
    """Return the overlays of a table in the order of merging; its files have been read."""
    if isinstance(table, LocalTarget):
        return ()
    own = (_run_as(table.run_as_user),) if isinstance(table, KServeTarget) else ()
    return tuple(one for one in (*own, *table.patches, table.overlay) if one and isinstance(one, dict))


def _run_as(user: int | str | None) -> Overlay:
    """Return the overlay that sets the user of pods, or leaves it to the namespace."""
    if user is None:
        return {}
    context = {"runAsUser": None if user == USER_OF_NAMESPACE else user}
    return {"spec": {"predictor": {"model": {"securityContext": context}}}}
