"""What a cluster can do, found out rather than assumed: KServe, its deployment mode, Knative, the ingress."""

from __future__ import annotations

import json
import re
from typing import Any

from msgspec import Struct

from deployer.target import Document
from deployer.targets.kserve.api import Api
from deployer.targets.kserve.refusals import RefusedError
from deployer.targets.kserve.resources import CONFIG_MAP, DEPLOYMENT, Resource

KSERVE_NAMESPACE = "kserve"
_CONFIG = "inferenceservice-config"
_CONTROLLER = "kserve-controller-manager"
_MODES = {"Serverless": "Knative", "RawDeployment": "Standard"}  # as they were called before KServe 0.16
_KNATIVE = Resource("serving.knative.dev", "v1", "services", "Service")
_INFERENCE = Resource("serving.kserve.io", "v1beta1", "inferenceservices", "InferenceService")


class ClusterFacts(Struct, frozen=True, kw_only=True):
    """What was found out; None where it may not be read."""

    kubernetes: str
    kserve: bool
    kserve_version: str | None = None
    configured_mode: str | None = None
    knative: bool = False

    @property
    def default_mode(self) -> str:
        """The mode that KServe would choose, or the one that can work where its choice is unknown."""
        return self.configured_mode or ("Knative" if self.knative else "Standard")


def find_facts(api: Api) -> ClusterFacts:
    """Ask the cluster what it can do. Reads only; what may not be read stays None."""
    config = _read(api, CONFIG_MAP, KSERVE_NAMESPACE, _CONFIG)
    return ClusterFacts(
        kubernetes=api.version(),
        kserve=_serves(api, _INFERENCE),
        kserve_version=_version(_read(api, DEPLOYMENT, KSERVE_NAMESPACE, _CONTROLLER)),
        configured_mode=_mode(config),
        knative=_serves(api, _KNATIVE),
    )


def find_mode(api: Api) -> str:
    """Return the deployment mode that KServe would choose: one or two small requests."""
    mode = _mode(_read(api, CONFIG_MAP, KSERVE_NAMESPACE, _CONFIG))
    return mode or ("Knative" if _serves(api, _KNATIVE) else "Standard")


def find_gateway(api: Api) -> str | None:
    """Return the NAMESPACE/NAME of the Gateway that KServe is set to use; None where it uses none."""
    ingress = _json(_read(api, CONFIG_MAP, KSERVE_NAMESPACE, _CONFIG), "ingress")
    gateway = ingress.get("kserveIngressGateway") if ingress.get("enableGatewayApi") else None
    return str(gateway) if gateway else None


def _mode(config: Document | None) -> str | None:
    mode = _json(config, "deploy").get("defaultDeploymentMode")
    return _MODES.get(mode, str(mode)) if mode else None


def _read(api: Api, resource: Resource, namespace: str, name: str) -> Document | None:
    try:
        return api.get(resource, namespace, name)
    except RefusedError:
        return None


def _serves(api: Api, resource: Resource) -> bool:
    return resource.plural in api.kinds(resource)


def _json(config: Document | None, key: str) -> dict[str, Any]:
    """Read one of the JSON texts that KServe's ConfigMap consists of; empty where it is none."""
    text = (config or {}).get("data", {}).get(key)
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _version(controller: Document | None) -> str | None:
    """Read KServe's version from the image of its controller."""
    if controller is None:
        return None
    containers = controller.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
    for container in containers:
        match = re.search(r"kserve-controller:v?(\d+\.\d+\.\d+\S*)$", container.get("image", ""))
        if match:
            return match[1]
    return None
