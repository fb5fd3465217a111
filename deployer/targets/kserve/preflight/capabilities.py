"""Finds out what a cluster can do: KServe, its deployment mode, Knative, the ingress."""

from __future__ import annotations

from functools import cached_property

from msgspec import UNSET, UnsetType

from deployer.errors import RefusedError
from deployer.observed import Document
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    NAMESPACE,
    SECURITY_CONSTRAINT,
)
from deployer.targets.kserve.preflight.rules.admission import USER_RANGE
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE, KNATIVE_SERVICE
from deployer.targets.kserve.state.settings import (
    KSERVE_NAMESPACE,
    KServeConfig,
    read_config,
    read_version,
)

_CONFIG = "inferenceservice-config"
_CONTROLLER = "kserve-controller-manager"


class Discovery:
    """Reads each object of a cluster once, when it is first needed."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._namespaces: dict[str, Document | None] = {}

    @cached_property
    def kserve(self) -> bool:
        """Whether KServe is installed."""
        return INFERENCE_SERVICE.plural in self._api.kinds(INFERENCE_SERVICE)

    @cached_property
    def version(self) -> str | None:
        """KServe's version, from its controller's image; None if it is unknown."""
        return read_version(self.controller or None)

    @cached_property
    def controller(self) -> Document | UnsetType | None:
        """The Deployment of KServe's controller: None if not found, UNSET if this user cannot read it."""
        try:
            return self._api.get(DEPLOYMENT, KSERVE_NAMESPACE, _CONTROLLER)
        except RefusedError:
            return UNSET

    @cached_property
    def knative(self) -> bool:
        """Whether Knative Serving is installed."""
        return KNATIVE_SERVICE.plural in self._api.kinds(KNATIVE_SERVICE)

    @cached_property
    def config(self) -> KServeConfig | None:
        """KServe's settings; None if this user cannot read them."""
        return _read_config(self._api)

    def namespace(self, name: str) -> Document | None:
        """Return a namespace, or None if it does not exist. Raises RefusedError."""
        if name not in self._namespaces:
            self._namespaces[name] = self._api.get(NAMESPACE, None, name)
        return self._namespaces[name]

    def assigns_user(self, namespace: str) -> bool:
        """Return whether a namespace assigns the user of its pods, as on OpenShift."""
        try:
            found = self.namespace(namespace)
        except RefusedError:
            return SECURITY_CONSTRAINT.plural in self._api.kinds(SECURITY_CONSTRAINT)
        return USER_RANGE in ((found or {}).get("metadata", {}).get("annotations") or {})

    @property
    def mode(self) -> str:
        """KServe's default mode; if it is unknown, one that can work."""
        configured = self.config.deployment_mode if self.config else None
        return configured or ("Knative" if self.knative else "Standard")


def find_gateway(api: Api) -> str | None:
    """Return the NAMESPACE/NAME of the Gateway that KServe uses; None if it uses none."""
    config = _read_config(api)
    return config.gateway if config else None


def _read_config(api: Api) -> KServeConfig | None:
    try:
        document = api.get(CONFIG_MAP, KSERVE_NAMESPACE, _CONFIG)
    except RefusedError:
        return None
    return read_config(document) if document else None
