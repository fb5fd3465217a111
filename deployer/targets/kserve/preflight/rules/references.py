"""Checks that the Secrets, ConfigMaps and ServiceAccount that a service's pods name exist. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import UNSET, Struct

from deployer.findings import Finding, failure, ok, warning
from deployer.observed import Document
from deployer.targets.kserve.preflight.rules.inputs import ClusterFacts, unchecked


class Named(Struct, frozen=True, order=True):
    """An object that a pod names: its kind and name, a key that it must have, and the field."""

    kind: str
    name: str
    key: str = ""
    field: str = ""

    @property
    def object(self) -> tuple[str, str]:
        """The kind and the name."""
        return self.kind, self.name


def named_objects(service: Document) -> list[Named]:
    """Return the Secrets and ConfigMaps that a pod cannot start without, and those with image credentials."""
    predictor = service["spec"]["predictor"]
    found = [*_of_container(predictor["model"], "model")]
    for kind in ("containers", "initContainers"):
        for container in predictor.get(kind, []):
            found += _of_container(container, f"{kind}.{container['name']}")
    for volume in predictor.get("volumes", []):
        found += _of_volume(volume)
    return found


def pull_secrets(service: Document) -> list[Named]:
    """Return the Secrets with credentials for images; a missing one fails only if an image needs it."""
    secrets = service["spec"]["predictor"].get("imagePullSecrets", [])
    return [Named("Secret", one["name"], field="imagePullSecrets") for one in secrets if "name" in one]


def check_references(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    """Report the Secrets, ConfigMaps and keys that are missing."""
    namespace, required, pulls = (
        service["metadata"]["namespace"],
        named_objects(service),
        pull_secrets(service),
    )
    unreadable = sorted({one.kind for one in (*required, *pulls) if facts.named.get(one.object) is UNSET})
    for kind in unreadable:
        yield unchecked("references", f"this user cannot read {kind}s", "whether those of the pods exist")
    if facts.account is None:
        name = service["spec"]["predictor"]["serviceAccountName"]
        detail = f"ServiceAccount {name} not found in namespace {namespace}"
        remedy = "Create it: it must be able to read the model store."
        yield failure("references", detail, "serviceAccountName", remedy)
    for one in required:
        if what := _missing(one, facts, namespace):
            yield failure("references", what, one.field, _remedy(one, namespace))
    for one in pulls:
        if what := _missing(one, facts, namespace):
            yield warning("references", what, "imagePullSecrets", _pull_remedy(one, namespace))
    if (required or pulls) and not unreadable:
        yield ok("references", ", ".join(sorted({f"{one.kind} {one.name}" for one in (*required, *pulls)})))


def _missing(one: Named, facts: ClusterFacts, namespace: str) -> str:
    keys = facts.named.get(one.object, UNSET)
    if keys is None:
        return f"{one.kind} {one.name} not found in namespace {namespace}"
    if isinstance(keys, frozenset) and one.key and one.key not in keys:
        return f"{one.kind} {one.name} in namespace {namespace} has no key {one.key}"
    return ""


def _remedy(one: Named, namespace: str) -> str:
    kind = "secret generic" if one.kind == "Secret" else "configmap"
    key = one.key or "KEY"
    return f"Create it: `kubectl -n {namespace} create {kind} {one.name} --from-file={key}=FILE`."


def _pull_remedy(one: Named, namespace: str) -> str:
    create = (
        f"kubectl -n {namespace} create secret docker-registry {one.name} --from-file=.dockerconfigjson=FILE"
    )
    return f"Create it: `{create}`."


def _of_container(container: dict[str, Any], place: str) -> Iterator[Named]:
    for variable in container.get("env", []):
        for kind, source in _sources(variable.get("valueFrom", {}), "secretKeyRef", "configMapKeyRef"):
            key = str(source.get("key", ""))
            yield Named(kind, str(source.get("name")), key, f"serving.env.{variable['name']}")
    for whole in container.get("envFrom", []):
        for kind, source in _sources(whole, "secretRef", "configMapRef"):
            yield Named(kind, str(source.get("name")), field=f"{place}.envFrom")


def _of_volume(volume: dict[str, Any]) -> Iterator[Named]:
    field = f"volumes.{volume['name']}"
    for one in (volume, *volume.get("projected", {}).get("sources", [])):
        for kind, source in _sources(one, "secret", "configMap"):
            name = str(source.get("secretName") or source.get("name"))
            for item in source.get("items") or [{}]:
                yield Named(kind, name, item.get("key", ""), field)


def _sources(table: dict[str, Any], secret: str, config_map: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the kind and the fields of each source that a pod cannot start without."""
    for field, kind in ((secret, "Secret"), (config_map, "ConfigMap")):
        source = table.get(field)
        if isinstance(source, dict) and not source.get("optional"):
            yield kind, source
