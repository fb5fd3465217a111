"""Checks that a service can run on its runtime, and that Knative accepts its fields. Pure.

Knative rejects some fields of a pod, others unless ConfigMap `knative-serving/config-features` allows them.
kdeploy's own runtime uses none of them; an overlay and a runtime of the cluster can.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET

from deployer.findings import Finding, failure, ok
from deployer.observed import Document
from deployer.targets.kserve.preflight.rules.inputs import ClusterFacts, mode_of, model_of, unchecked

_ON_BY_DEFAULT = "kubernetes.podspec-volumes-emptydir"
_POD = {
    field: f"kubernetes.podspec-{name or field.lower()}"
    for field, name in {
        "affinity": "",
        "dnsConfig": "",
        "dnsPolicy": "",
        "hostAliases": "",
        "hostIPC": "",
        "hostNetwork": "",
        "hostPID": "",
        "initContainers": "init-containers",
        "nodeSelector": "",
        "priorityClassName": "",
        "runtimeClassName": "",
        "schedulerName": "",
        "securityContext": "",
        "shareProcessNamespace": "",
        "tolerations": "",
        "topologySpreadConstraints": "",
    }.items()
}
# Fields that no flag allows.
_REJECTED = (
    *("activeDeadlineSeconds", "hostname", "hostUsers", "nodeName", "os", "overhead", "preemptionPolicy"),
    *("priority", "readinessGates", "resourceClaims", "restartPolicy", "schedulingGates"),
    *("setHostnameAsFQDN", "subdomain"),
)
_VOLUMES = {
    "csi": "kubernetes.podspec-volumes-csi",
    "emptyDir": "kubernetes.podspec-volumes-emptydir",
    "hostPath": "kubernetes.podspec-volumes-hostpath",
    "persistentVolumeClaim": "kubernetes.podspec-persistent-volume-claim",
}


def check_runtime(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    """Check whether the service can run on its runtime."""
    model, runtime, where = model_of(service), facts.runtime, "serving.runtime"
    name = model.get("runtime")
    if runtime is UNSET:
        yield unchecked("runtime", "this user cannot read runtimes", "whether it supports pytorch")
        return
    if runtime is None:
        remedy = "Run `kubectl get servingruntimes,clusterservingruntimes` to list them."
        yield failure("runtime", f"ServingRuntime or ClusterServingRuntime {name} not found", where, remedy)
        return
    spec, kind, protocol = runtime["spec"], model["modelFormat"]["name"], model["protocolVersion"]
    formats = [one["name"] for one in spec.get("supportedModelFormats", [])]
    protocols = spec.get("protocolVersions") or [protocol]  # without the field, KServe accepts every version
    if spec.get("disabled"):
        yield failure("runtime", f"runtime {name} is disabled", where, "Enable it, or choose another one.")
    elif spec.get("multiModel"):
        yield failure("runtime", f"runtime {name} is for ModelMesh", where, "Choose another runtime.")
    elif kind not in formats:
        detail = f"runtime {name} supports {', '.join(formats) or 'no format'}, not {kind}"
        yield failure("runtime", detail, where, "Choose a runtime that starts TorchServe.")
    elif protocol not in protocols:
        detail = f"runtime {name} supports protocol {', '.join(protocols)}, not {protocol}"
        yield failure("runtime", detail, where, "Set `serving.protocol-version`, or choose another runtime.")
    else:
        yield ok("runtime", str(name))


def check_features(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    """Check whether Knative accepts the service's pods."""
    features = facts.features
    if mode_of(service) != "Knative":
        return
    for field in _REJECTED:
        if service["spec"]["predictor"].get(field) is not None:
            detail, place = f"Knative rejects {field} of a pod", f"spec.predictor.{field} of the overlay"
            yield failure("Knative features", detail, place, "Remove it, or use a cluster in Standard mode.")
    if features is UNSET:
        return
    flags = (features or {}).get("data") or {}
    wanted = flags_of(service, facts.runtime or None)
    missing = {flag: field for flag, field in wanted.items() if not _is_on(flag, flags)}
    for flag, field in missing.items():
        detail = f"Knative rejects {field} while its feature {flag} is off"
        remedy = f'Set `{flag}: "enabled"` in ConfigMap knative-serving/config-features.'
        place = "overlay" if flag in flags_of(service, None) else "serving.runtime"
        yield failure("Knative features", detail, place, remedy)
    if wanted and not missing:
        yield ok("Knative features", ", ".join(wanted))


def flags_of(service: Document, runtime: Document | None) -> dict[str, str]:
    """Return the flags that a service on a runtime needs, each with the field that needs it."""
    specs = [service["spec"]["predictor"], *([runtime["spec"]] if runtime else [])]
    return {flag: field for spec in specs for flag, field in _needed(spec)}


def _is_on(flag: str, flags: dict[str, str]) -> bool:
    value = str(flags.get(flag, "")).lower()
    return value in ("enabled", "allowed") or (flag == _ON_BY_DEFAULT and value != "disabled")


def _needed(spec: Document) -> Iterator[tuple[str, str]]:
    yield from ((flag, field) for field, flag in _POD.items() if spec.get(field))
    for volume in spec.get("volumes", []):
        yield from ((flag, f"volumes.{kind}") for kind, flag in _VOLUMES.items() if kind in volume)
    model = [spec["model"]] if "model" in spec else []
    for container in [*spec.get("containers", []), *spec.get("initContainers", []), *model]:
        if container.get("securityContext", {}).get("capabilities", {}).get("add"):
            yield "kubernetes.containerspec-addcapabilities", "capabilities.add"
        sources = [variable.get("valueFrom", {}) for variable in container.get("env", [])]
        if any(key in source for source in sources for key in ("fieldRef", "resourceFieldRef")):
            yield "kubernetes.podspec-fieldref", "env.valueFrom.fieldRef"
