"""What `kdeploy.toml` may say: every table, key, type, default and what it means."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

# `$` alone would let a line break pass at the end.
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$(?!\n)"
NAME_MAX = 46  # Knative's latest-NAME-predictor and KServe's label isvc.NAME-predictor stay within 63

Name = Annotated[str, Meta(pattern=NAME_PATTERN, max_length=NAME_MAX)]
Namespace = Annotated[str, Meta(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$(?!\n)", max_length=63)]
Subdomain = Annotated[
    str, Meta(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$(?!\n)", max_length=253)
]  # what Kubernetes calls most objects
Label = Annotated[str, Meta(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$(?!\n)", max_length=50)]
Quantity = Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$(?!\n)")]
PORT_FORWARD = "port-forward"  # as an ingress: the API server is the way to it
Ingress = Annotated[str, Meta(pattern=rf"^(https?://[^\s/@]+(/|$)|{PORT_FORWARD}$)")]
Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Endpoint = Annotated[str, Meta(pattern=r"^https?://[^\s/?#@]+(/[^\s?#@]*)?$(?!\n)")]
Port = Annotated[int, Meta(ge=0, le=65535)]


class Model(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """`[model]`: what goes into the model archive. Paths are relative to the file's own folder."""

    name: Annotated[Name, Meta(description="Model, archive and InferenceService are called this.")]
    version: Annotated[Label, Meta(description="The model's version; the release id starts with it.")]
    handler: Annotated[
        str,
        Meta(min_length=1, description="A file, `file.py:function`, or the name of a TorchServe handler."),
    ]
    serialized_file: Annotated[str | None, Meta(description="The weights: .pt, .pth, TorchScript.")] = None
    model_file: Annotated[str | None, Meta(description="The architecture, for weights in eager mode.")] = None
    extra_files: Annotated[
        tuple[str, ...], Meta(description="More files: paths, globs, or folders, whose contents are taken.")
    ] = ()
    requirements_file: Annotated[
        str | None, Meta(description="Installed by TorchServe when the model is loaded.")
    ] = None
    config_file: Annotated[str | None, Meta(description="TorchServe's model-config.yaml.")] = None
    runtime: Annotated[
        Literal["python", "python3", "LSP"], Meta(description="TorchServe's backend for this model.")
    ] = "python"
    archive_format: Annotated[
        Literal["zip-store", "default", "tgz", "no-archive"],
        Meta(description="Stored or deflated .mar, .tar.gz, or a folder. A model store takes a .mar."),
    ] = "zip-store"
    python: Annotated[
        str,
        Meta(
            pattern=r"^3\.[0-9]+$(?!\n)", description="The serving image's Python: handlers must parse on it."
        ),
    ] = "3.9"
    image_modules: Annotated[
        tuple[str, ...],
        Meta(description="Modules that the serving image holds beyond those kdeploy knows of."),
    ] = ()


class Serving(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """`[serving]`: how the model is served. Part of the release's identity."""

    protocol_version: Annotated[
        Literal["v1", "v2"], Meta(description="What the InferenceService declares; the archive answers both.")
    ] = "v1"
    image: Annotated[str, Meta(min_length=1, description="TorchServe's image.")] = (
        "pytorch/torchserve-kfs:0.12.0"
    )
    gpu_image: Annotated[str, Meta(min_length=1, description="The same, where `gpu` is not 0.")] = (
        "pytorch/torchserve-kfs:0.12.0-gpu"
    )
    runtime: Annotated[
        Subdomain | None,
        Meta(
            description="A ServingRuntime of the cluster's own, or a ClusterServingRuntime; else kdeploy's."
        ),
    ] = None
    min_workers: Annotated[Positive, Meta(description="TorchServe workers, at least.")] = 1
    max_workers: Annotated[Positive, Meta(description="TorchServe workers, at most.")] = 1
    batch_size: Annotated[Positive, Meta(description="Requests that go to the handler in one call.")] = 1
    max_batch_delay: Annotated[Positive, Meta(description="Milliseconds a batch waits to be filled.")] = 50
    response_timeout: Annotated[Positive, Meta(description="Seconds until a worker counts as hung.")] = 120
    drain_seconds: Annotated[
        Count, Meta(description="Seconds a replica keeps taking requests after SIGTERM.")
    ] = 5
    startup_timeout: Annotated[Positive, Meta(description="Seconds a worker may take to load.")] = 120
    gpu: Annotated[Count, Meta(description="GPUs per replica: nvidia.com/gpu, limit and request.")] = 0
    cpu: Annotated[Quantity, Meta(description="CPU per replica, limit and request.")] = "1"
    memory: Annotated[Quantity, Meta(description="Memory per replica, limit and request.")] = "2Gi"
    env: Annotated[
        dict[str, str], Meta(description="Environment of the serving container. Not for secrets.")
    ] = field(default_factory=dict)
    max_request_size: Annotated[Positive, Meta(description="Bytes of a request at most.")] = 6_553_500
    max_response_size: Annotated[Positive, Meta(description="Bytes of a response at most.")] = 6_553_500


class Scaling(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """`[scaling]`: how many replicas serve. Not part of the release: changing it restarts nothing."""

    min_replicas: Annotated[Count, Meta(description="Replicas at least; 0 scales to zero on Knative.")] = 1
    max_replicas: Annotated[Positive, Meta(description="Replicas at most.")] = 1


class Store(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """`[store]`: where releases live. Credentials are never here: each cloud has its own places for them."""

    uri: Annotated[
        str,
        Meta(
            min_length=1,
            description="A folder; s3://, gs:// or az:// with a bucket and a prefix; pvc://CLAIM/PATH.",
        ),
    ] = "model-store"
    endpoint: Annotated[
        Endpoint | None, Meta(description="An S3-compatible server; http:// goes without TLS.")
    ] = None
    region: Annotated[Label | None, Meta(description="The bucket's region; else the environment's.")] = None
    virtual_hosted: Annotated[
        bool, Meta(description="The bucket is in the host's name, as in https://BUCKET.s3.example.org.")
    ] = False
    account: Annotated[Label | None, Meta(description="Azure's storage account.")] = None
    ca_bundle: Annotated[
        str | None, Meta(description="The PEM file of who signed the endpoint's certificate.")
    ] = None
    ca_config_map: Annotated[
        Subdomain | None, Meta(description="A ConfigMap on the cluster that holds the same as cabundle.crt.")
    ] = None
    service_account: Annotated[
        Subdomain | None, Meta(description="A ServiceAccount on the cluster that may read; else one is made.")
    ] = None
    secret_name: Annotated[
        Subdomain | None,
        Meta(description="A Secret on the cluster for the ServiceAccount; else one is made."),
    ] = None
    service_account_annotations: Annotated[
        dict[str, str], Meta(description="Of the ServiceAccount, as a role's; then no Secret is made.")
    ] = field(default_factory=dict)
    helper_image: Annotated[
        str | None, Meta(description="What a Pod runs that mounts a claim; else the serving image.")
    ] = None
    create_claim: Annotated[
        Quantity | None, Meta(description="The size of a claim that is made where there is none.")
    ] = None
    claim_access_mode: Annotated[
        Literal["ReadWriteMany", "ReadWriteOnce"], Meta(description="The access mode of such a claim.")
    ] = "ReadWriteMany"


class LocalTarget(
    Struct,
    frozen=True,
    kw_only=True,
    rename="kebab",
    forbid_unknown_fields=True,
    tag="local",
    tag_field="kind",
):
    """`[targets.NAME]` with `kind = "local"`: a one-node KServe on this machine."""

    namespace: Annotated[Namespace, Meta(description="The namespace of what is rolled out.")] = "default"
    ingress_host: Annotated[str, Meta(description="The address that the ingress listens on.")] = "127.0.0.1"
    ingress_port: Annotated[Port, Meta(description="The ingress's port; 0 takes a free one.")] = 8081
    state: Annotated[str, Meta(min_length=1, description="The folder of the supervisor's state.")] = (
        ".kdeploy"
    )


class KServeTarget(
    Struct,
    frozen=True,
    kw_only=True,
    rename="kebab",
    forbid_unknown_fields=True,
    tag="kserve",
    tag_field="kind",
):
    """`[targets.NAME]` with `kind = "kserve"`: a namespace of a Kubernetes cluster with KServe."""

    namespace: Annotated[Namespace | None, Meta(description="The namespace; else the context's own.")] = None
    context: Annotated[str | None, Meta(description="The context; else kubeconfig's current one.")] = None
    kubeconfig: Annotated[
        str | None, Meta(description="The kubeconfig; else KUBECONFIG, ~/.kube/config, or the pod's own.")
    ] = None
    deployment_mode: Annotated[
        Literal["Knative", "Standard"] | None,
        Meta(description="KServe's deployment mode; else the one that the cluster is set to."),
    ] = None
    domain_template: Annotated[
        str | None,
        Meta(description="KServe's domainTemplate, where its ConfigMap may not be read; else its default."),
    ] = None
    ingress: Annotated[
        Ingress | None,
        Meta(description="The ingress's address, as http://ADDRESS, or port-forward; else it is found out."),
    ] = None
    wait_window: Annotated[
        float, Meta(ge=0, le=600, description="Seconds that Ready must last until it is believed.")
    ] = 2.0
    history_limit: Annotated[
        int, Meta(ge=1, le=1000, description="Rollouts that the cluster remembers of a service.")
    ] = 20


TargetConfig = LocalTarget | KServeTarget
TorchServeValue = str | int | float | bool


class Config(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """The whole of `kdeploy.toml`."""

    model: Model
    serving: Serving = field(default_factory=Serving)
    scaling: Scaling = field(default_factory=Scaling)
    store: Store = field(default_factory=Store)
    targets: Annotated[dict[str, TargetConfig], Meta(description="Where releases are served, by name.")] = (
        field(default_factory=lambda: {"local": LocalTarget()})
    )
    torchserve: Annotated[
        dict[str, TorchServeValue],
        Meta(description="Keys that go verbatim into TorchServe's config.properties."),
    ] = field(default_factory=dict)
