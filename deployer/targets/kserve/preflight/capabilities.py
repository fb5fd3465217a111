"""What a cluster can do, found out rather than assumed: KServe, its deployment mode, Knative, the ingress."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from deployer.observed import Document
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.api_errors import RefusedError
from deployer.targets.kserve.client.resources import CONFIG_MAP, DEPLOYMENT, INFERENCE_SERVICE, Resource

KSERVE_NAMESPACE = "kserve"
_CONFIG = "inferenceservice-config"
_CONTROLLER = "kserve-controller-manager"
_MODES = {"Serverless": "Knative", "RawDeployment": "Standard"}  # as they were called before KServe 0.16
_KNATIVE = Resource("serving.knative.dev", "v1", "services", "Service")


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


class Discovery:
    """Finds out what a cluster can do: each object is asked for once, when it is first needed."""

    def __init__(self, api: Api) -> None:
        self._api = api

    @cached_property
    def kubernetes(self) -> str:
        """The API server's version."""
        return self._api.version()

    @cached_property
    def kserve(self) -> bool:
        """Whether KServe is installed."""
        return INFERENCE_SERVICE.plural in self._api.kinds(INFERENCE_SERVICE)

    @cached_property
    def version(self) -> str | None:
        """KServe's version, by the image of its controller; None where that cannot be read."""
        return read_version(self.controller or None)

    @cached_property
    def controller(self) -> Document | UnsetType | None:
        """The Deployment of KServe's controller: None where there is none, UNSET where it may not be read."""
        try:
            return self._api.get(DEPLOYMENT, KSERVE_NAMESPACE, _CONTROLLER)
        except RefusedError:
            return UNSET

    @cached_property
    def knative(self) -> bool:
        """Whether Knative Serving is installed."""
        return _KNATIVE.plural in self._api.kinds(_KNATIVE)

    @cached_property
    def config(self) -> KServeConfig | None:
        """What KServe is set to; None where that may not be read."""
        document = _read(self._api, CONFIG_MAP, KSERVE_NAMESPACE, _CONFIG)
        return read_config(document) if document else None

    @property
    def mode(self) -> str:
        """The mode that KServe would choose, or that can work where its choice is unknown."""
        configured = self.config.deployment_mode if self.config else None
        return configured or ("Knative" if self.knative else "Standard")


def find_gateway(api: Api) -> str | None:
    """Return the NAMESPACE/NAME of the Gateway that KServe is set to use; None where it uses none."""
    return read_config(_read(api, CONFIG_MAP, KSERVE_NAMESPACE, _CONFIG) or {}).gateway


def read_config(document: Document) -> KServeConfig:
    """Read KServe's ConfigMap: JSON texts, of which what is missing or broken is as by default. Pure."""
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
    """Read KServe's version from its controller's Deployment. Pure."""
    containers = (
        ((controller or {}).get("spec") or {}).get("template", {}).get("spec", {}).get("containers", [])
    )
    for container in containers:
        match = re.search(r"kserve-controller:v?(\d+\.\d+\.\d+\S*)$", container.get("image", ""))
        if match:
            return match[1]
    return None


def _read(api: Api, resource: Resource, namespace: str, name: str) -> Document | None:
    try:
        return api.get(resource, namespace, name)
    except RefusedError:
        return None


def _json(config: Document, key: str) -> dict[str, Any]:
    """Read one of the JSON texts that KServe's ConfigMap consists of; empty where it is none."""
    text = (config.get("data") or {}).get(key)
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
