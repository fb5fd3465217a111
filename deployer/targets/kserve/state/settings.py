"""What KServe's ConfigMap and its controller say about an installation. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

from msgspec import Struct

from deployer.observed import Document

KSERVE_NAMESPACE = "kserve"
_MODES = {"Serverless": "Knative", "RawDeployment": "Standard"}  # as they were called before KServe 0.16


class KServeConfig(Struct, frozen=True, kw_only=True):
    """What KServe is set to by its ConfigMap; the defaults are KServe's own."""

    deployment_mode: str | None = None
    domain: str = "example.com"
    domain_template: str = "{{ .Name }}-{{ .Namespace }}.{{ .IngressDomain }}"
    url_scheme: str = "http"
    path_template: str = ""
    ingress_class: str = "istio"
    gateway: str | None = None  # NAMESPACE/NAME, where the Gateway API is used

    def host(self, name: str, namespace: str) -> str | None:
        """Return the host that KServe gives to a name in Standard mode; None where it depends on more."""
        values = {"Name": name, "Namespace": namespace, "IngressDomain": self.domain}
        host = re.sub(r"{{-?\s*\.(\w+)\s*-?}}", lambda m: values.get(m[1], m[0]), self.domain_template)
        return None if "{{" in host else host


def read_config(document: Document) -> KServeConfig:
    """Read KServe's ConfigMap: JSON texts; defaults replace what is missing or invalid."""
    ingress = _json(document, "ingress")
    mode = _json(document, "deploy").get("defaultDeploymentMode")
    named = {
        "domain": ingress.get("ingressDomain"),
        "domain_template": ingress.get("domainTemplate"),
        "url_scheme": ingress.get("urlScheme"),
        "path_template": ingress.get("pathTemplate"),
        "ingress_class": ingress.get("ingressClassName"),
        "gateway": ingress.get("kserveIngressGateway") if ingress.get("enableGatewayApi") is True else None,
        "deployment_mode": _MODES.get(str(mode), mode),
    }
    return KServeConfig(**{key: str(value) for key, value in named.items() if value})


def read_version(controller: Document | None) -> str | None:
    """Read KServe's version from its controller's Deployment."""
    containers = (
        ((controller or {}).get("spec") or {}).get("template", {}).get("spec", {}).get("containers", [])
    )
    for container in containers:
        match = re.search(r"kserve-controller:v?(\d+\.\d+\.\d+\S*)$", container.get("image", ""))
        if match:
            return match[1]
    return None


def _json(config: Document, key: str) -> dict[str, Any]:
    """Read one of the JSON texts that KServe's ConfigMap consists of; empty where it is not valid."""
    text = (config.get("data") or {}).get(key)
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
