"""KServe's settings and version, read from its ConfigMap and its controller. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

from msgspec import Struct

from deployer.config import OLD_MODES
from deployer.observed import Document

KSERVE_NAMESPACE = "kserve"


class KServeConfig(Struct, frozen=True, kw_only=True):
    """KServe's settings; the defaults are KServe's."""

    deployment_mode: str | None = None
    domain: str = "example.com"
    domain_template: str = "{{ .Name }}-{{ .Namespace }}.{{ .IngressDomain }}"
    url_scheme: str = "http"
    path_template: str = ""
    ingress_class: str = "istio"
    gateway: str | None = None  # NAMESPACE/NAME, with the Gateway API

    def host(self, name: str, namespace: str) -> str | None:
        """Return the host of a service in Standard mode; None if it depends on more than the names."""
        values = {"Name": name, "Namespace": namespace, "IngressDomain": self.domain}
        host = re.sub(r"{{-?\s*\.(\w+)\s*-?}}", lambda m: values.get(m[1], m[0]), self.domain_template)
        return None if "{{" in host else host


def read_config(document: Document) -> KServeConfig:
    """Read KServe's ConfigMap; missing and invalid values get the defaults."""
    ingress = _json(document, "ingress")
    mode = str(_json(document, "deploy").get("defaultDeploymentMode"))
    mode = OLD_MODES.get(mode, mode)
    named = {
        "domain": ingress.get("ingressDomain"),
        "domain_template": ingress.get("domainTemplate"),
        "url_scheme": ingress.get("urlScheme"),
        "path_template": ingress.get("pathTemplate"),
        "ingress_class": ingress.get("ingressClassName"),
        "gateway": ingress.get("kserveIngressGateway") if ingress.get("enableGatewayApi") is True else None,
        "deployment_mode": mode if mode in OLD_MODES.values() else None,  # ModelMesh does not load a .mar
    }
    return KServeConfig(**{key: str(value) for key, value in named.items() if value})


def read_version(controller: Document | None) -> str | None:
    """Read KServe's version from its controller's image."""
    containers = (
        ((controller or {}).get("spec") or {}).get("template", {}).get("spec", {}).get("containers", [])
    )
    for container in containers:
        match = re.search(r"kserve-controller:v?(\d+\.\d+\.\d+\S*)$", container.get("image", ""))
        if match:
            return match[1]
    return None


def _json(config: Document, key: str) -> dict[str, Any]:
    """Parse one JSON text of KServe's ConfigMap; empty if it is missing or invalid."""
    text = (config.get("data") or {}).get(key)
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
