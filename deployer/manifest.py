"""The documents of a release: its InferenceService and the ServingRuntime that it runs on.

Pure but for reading the templates in `manifests/`. Every value passes a filter that writes it as
one JSON string, which is also YAML, so no value can become structure.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from deployer.config import Serving
from deployer.properties import INFERENCE_PORT, METRICS_PORT
from deployer.release import Release, Traffic
from deployer.shipped import shipped
from deployer.target import Capabilities, Document

if TYPE_CHECKING:
    from jinja2 import Environment

# A runtime is shared and a change of it restarts every service on it, so a changed one is a new one.
RUNTIME_NAME = "kdeploy-torchserve-v1"

# What PyYAML leaves unquoted and other readers, Go's among them, take for a number or a boolean.
_READ_OTHERWISE = re.compile(r"[-+.0-9]|[yYnN]$")


def render(
    release: Release,
    *,
    storage_uri: str,
    namespace: str,
    capabilities: Capabilities,
    traffic: Traffic | None = None,
) -> list[Document]:
    """Render the documents of a release, in the order in which they are to be applied."""
    import yaml

    values = {
        "name": release.name,
        "namespace": namespace,
        "release": release,
        "serving": release.serving,
        "image": release.serving.gpu_image if release.serving.gpu else release.serving.image,
        "runtime_image": Serving().image,
        "traffic": traffic or Traffic(),
        "storage_uri": storage_uri,
        "deployment_mode": capabilities.deployment_mode,
        "runtime": RUNTIME_NAME,
        "inference_port": INFERENCE_PORT,
        "metrics_port": METRICS_PORT,
        "probe": (shipped("manifests") / "probe.py").read_text("utf-8"),
    }
    texts = (
        _environment().get_template(name).render(values)
        for name in ("servingruntime.yaml.j2", "inferenceservice.yaml.j2")
    )
    return [yaml.safe_load(text) for text in texts]


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
    return environment


def _quote(value: object) -> str:
    """Write a string in double quotes and ASCII: YAML reads it as that string and nothing else."""
    if not isinstance(value, str):
        raise TypeError(f"only text is quoted, not {type(value).__name__}")
    # JSON writes what lies beyond U+FFFF as two surrogates, which YAML does not join.
    return '"' + "".join(json.dumps(c)[1:-1] if c <= "\uffff" else f"\\U{ord(c):08x}" for c in value) + '"'
