"""The documents of a release: its InferenceService, the ServingRuntime that it runs on, its ServiceAccount.

Pure but for reading the templates in `manifests/`. Every value passes a filter that writes it as
one JSON string, which is also YAML, so no value can become structure.
"""

from __future__ import annotations

import base64
import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from deployer.access import Access
from deployer.config import Serving
from deployer.properties import INFERENCE_PORT, METRICS_PORT
from deployer.release import Release, Traffic
from deployer.shipped import shipped
from deployer.target import Capabilities, Document

if TYPE_CHECKING:
    from jinja2 import Environment

# A runtime is shared and a change of it restarts every service on it, so a changed one is a new one.
RUNTIME_PREFIX = "kdeploy-torchserve-"
RUNTIME_NAME = f"{RUNTIME_PREFIX}v1"

# What PyYAML leaves unquoted and other readers, Go's among them, take for a number or a boolean.
_READ_OTHERWISE = re.compile(r"[-+.0-9]|[yYnN]$")


def render(
    release: Release,
    *,
    storage_uri: str,
    namespace: str,
    capabilities: Capabilities,
    traffic: Traffic | None = None,
    access: Access | None = None,
    recreate: bool = False,
) -> list[Document]:
    """Render the documents of a release, in the order in which they are to be applied.

    With `recreate`, old pods are stopped before new ones are started: that takes no room for both.
    With `access`, the service runs as the ServiceAccount that may read the model store. The Secret that it
    may list is none of these documents: `render_secret` makes it, where it is applied. A runtime that
    `serving` names is the cluster's own, and none is rendered.
    """
    account = access.service_account(release.name) if access else ""
    # A node of its own has no other runtime than ours.
    named = None if capabilities.own_disk else release.serving.runtime
    values = {
        "name": release.name,
        "namespace": namespace,
        "release": release,
        "serving": release.serving,
        "image": _image(release.serving, named),
        "runtime_image": Serving().image,
        "traffic": traffic or Traffic(),
        "storage_uri": storage_uri,
        "deployment_mode": capabilities.deployment_mode,
        "runtime": named or RUNTIME_NAME,
        "inference_port": INFERENCE_PORT,
        "metrics_port": METRICS_PORT,
        "probe": (shipped("manifests") / "probe.py").read_text("utf-8"),
        "service_account": account,
        "pod_labels": access.pod_labels if access else {},
        "recreate": recreate,
    }
    names = ["inferenceservice.yaml.j2"] if named else ["servingruntime.yaml.j2", "inferenceservice.yaml.j2"]
    if access and not access.account:
        secret = access.secret_name(release.name)
        annotations = access.account_annotations | ({} if secret else access.annotations)
        values |= {"secret": secret, "account_annotations": annotations}
        names.insert(0, "serviceaccount.yaml.j2")
    return [_document(name, values) for name in names]


def render_secret(access: Access, *, service: str, namespace: str) -> Document | None:
    """Render the Secret that lets a service read the model store; None where there is none of ours.

    It holds credentials: it is to be applied and never to be shown or kept.
    """
    if not access.data:
        return None
    secret = access.secret_name(service)
    return _document("secret.yaml.j2", {"access": access, "secret": secret, "namespace": namespace})


def _image(serving: Serving, runtime: str | None) -> str:
    """Choose the image; nothing where a runtime of the cluster's own has one and the config none."""
    key = "gpu_image" if serving.gpu else "image"
    chosen: str = getattr(serving, key)
    return "" if runtime and chosen == getattr(Serving(), key) else chosen


def _document(template: str, values: dict[str, Any]) -> Document:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, where PyYAML was built with it
    document: Document = yaml.load(_environment().get_template(template).render(values), loader)  # noqa: S506
    return document


def encode_yaml(documents: list[Document]) -> str:
    """Encode documents as one YAML stream, as `kubectl apply -f -` and GitOps read it."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Block text stays readable, and nothing is an alias."""

        def ignore_aliases(self, _data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else '"' if _READ_OTHERWISE.match(value) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, explicit_start=True, width=110)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(shipped("manifests")),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - YAML, not HTML: the filter below is the escaping
    )
    environment.filters["yaml"] = _quote
    environment.filters["base64"] = lambda text: base64.b64encode(text.encode()).decode()
    return environment


def _quote(value: object) -> str:
    """Write a string in double quotes and ASCII: YAML reads it as that string and nothing else."""
    if not isinstance(value, str):
        raise TypeError(f"only text is quoted, not {type(value).__name__}")
    # JSON writes what lies beyond U+FFFF as two surrogates, which YAML does not join.
    parts = re.split("([\U00010000-\U0010ffff])", value)
    wide = (f"\\U{ord(c):08x}" for c in parts[1::2])
    return '"' + "".join(json.dumps(text)[1:-1] + next(wide, "") for text in parts[::2]) + '"'
