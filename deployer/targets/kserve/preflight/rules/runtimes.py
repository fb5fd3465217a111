"""The runtime that a service runs on: whether it can, and what Knative has to allow for it. Pure.

Knative refuses some fields of a pod unless ConfigMap `knative-serving/config-features` allows them. What
kdeploy renders by itself needs none of them; a runtime of the cluster's own may.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET, UnsetType

from deployer.bundle import Bundle
from deployer.findings import Finding, failure, ok
from deployer.observed import Document
from deployer.targets.kserve.preflight.rules.documents import mode_of

Seen = Document | None | UnsetType  # None: it is not there; UNSET: it may not be read, or was not asked for

_ON_BY_DEFAULT = frozenset({"kubernetes.podspec-volumes-emptydir"})
_POD = {
    "affinity": "kubernetes.podspec-affinity",
    "hostIPC": "kubernetes.podspec-hostipc",
    "nodeSelector": "kubernetes.podspec-nodeselector",
    "tolerations": "kubernetes.podspec-tolerations",
}
_VOLUMES = {
    "csi": "kubernetes.podspec-volumes-csi",
    "emptyDir": "kubernetes.podspec-volumes-emptydir",
    "hostPath": "kubernetes.podspec-volumes-hostpath",
    "persistentVolumeClaim": "kubernetes.podspec-persistent-volume-claim",
}


def find_runtime(bundle: Bundle, named: Seen) -> Seen:
    """Return the runtime that is used: the bundle's, or the cluster's own that is named."""
    return bundle.runtime or named


def check_runtime(service: Document, runtime: Seen) -> Iterator[Finding]:
    """Yield whether a service can run on its runtime."""
    model = service["spec"]["predictor"]["model"]
    name, where = model.get("runtime"), "serving.runtime"
    if runtime is UNSET:
        return
    if runtime is None:
        detail = f"there is neither a ServingRuntime nor a ClusterServingRuntime {name}"
        yield failure(
            "runtime", detail, where, "`kubectl get servingruntimes,clusterservingruntimes` lists them"
        )
        return
    spec = runtime["spec"]
    formats = [one["name"] for one in spec.get("supportedModelFormats", [])]
    protocols = spec.get("protocolVersions") or [model["protocolVersion"]]  # none said is all of them
    if spec.get("disabled"):
        yield failure("runtime", f"{name} is disabled", where, "enable it, or name another")
    elif spec.get("multiModel"):
        yield failure("runtime", f"{name} is for ModelMesh", where, "name one without multiModel")
    elif model["modelFormat"]["name"] not in formats:
        detail = f"{name} serves {', '.join(formats) or 'nothing'}, and not {model['modelFormat']['name']}"
        yield failure("runtime", detail, where, "name one that starts TorchServe, or none")
    elif model["protocolVersion"] not in protocols:
        detail = f"{name} speaks {', '.join(protocols)}, and not {model['protocolVersion']}"
        yield failure("runtime", detail, where, "set serving.protocol-version, or name another runtime")
    else:
        yield ok("runtime", str(name))


def check_features(service: Document, runtime: Seen, features: Seen) -> Iterator[Finding]:
    """Yield whether Knative takes the pods of a service; `features` is its ConfigMap."""
    if mode_of(service) != "Knative" or features is UNSET:
        return
    wanted = flags_of(service, runtime or None)
    missing = {flag: field for flag, field in wanted.items() if not _is_on(flag, features)}
    for flag, field in missing.items():
        detail = f"Knative refuses {field} while its feature {flag} is off"
        remedy = f'set {flag}: "enabled" in ConfigMap knative-serving/config-features'
        yield failure("Knative features", detail, "serving.runtime", remedy)
    if wanted and not missing:
        yield ok("Knative features", ", ".join(wanted))


def flags_of(service: Document, runtime: Document | None) -> dict[str, str]:
    """Return the flags that a service on a runtime needs, each with the field that needs it."""
    specs = [service["spec"]["predictor"], *([runtime["spec"]] if runtime else [])]
    return {flag: field for spec in specs for flag, field in _needed(spec)}


def _is_on(flag: str, features: Document | None) -> bool:
    """Return whether a flag is on; `features` is the ConfigMap, None where there is none."""
    value = str(((features or {}).get("data") or {}).get(flag, ""))
    if value.lower() in ("enabled", "allowed", "disabled"):
        return value.lower() != "disabled"
    return flag in _ON_BY_DEFAULT


def _needed(spec: Document) -> Iterator[tuple[str, str]]:
    yield from ((flag, field) for field, flag in _POD.items() if spec.get(field))
    for volume in spec.get("volumes", []):
        yield from ((flag, f"volumes.{kind}") for kind, flag in _VOLUMES.items() if kind in volume)
    for container in spec.get("containers", []):
        if container.get("securityContext", {}).get("capabilities", {}).get("add"):
            yield "kubernetes.containerspec-addcapabilities", "capabilities.add"
        sources = [variable.get("valueFrom", {}) for variable in container.get("env", [])]
        if any(key in source for source in sources for key in ("fieldRef", "resourceFieldRef")):
            yield "kubernetes.podspec-fieldref", "env.valueFrom.fieldRef"
