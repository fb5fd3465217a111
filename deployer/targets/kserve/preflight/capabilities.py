"""What a cluster can do, read rather than assumed: KServe, its deployment mode, Knative, the ingress."""

from __future__ import annotations

from functools import cached_property

from msgspec import UNSET, UnsetType

from deployer.errors import RefusedError
from deployer.observed import Document
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.resources import CONFIG_MAP, DEPLOYMENT
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
    """Finds out what a cluster can do: each object is read once, when it is first needed."""

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
        return KNATIVE_SERVICE.plural in self._api.kinds(KNATIVE_SERVICE)

    @cached_property
    def config(self) -> KServeConfig | None:
        """What KServe is set to; None where that may not be read."""
        return _read_config(self._api)

    @property
    def mode(self) -> str:
        """The mode that KServe would choose, or that can work where its choice is unknown."""
        configured = self.config.deployment_mode if self.config else None
        return configured or ("Knative" if self.knative else "Standard")


def find_gateway(api: Api) -> str | None:
    """Return the NAMESPACE/NAME of the Gateway that KServe is set to use; None where it uses none."""
    config = _read_config(api)
    return config.gateway if config else None


def _read_config(api: Api) -> KServeConfig | None:
    try:
        document = api.get(CONFIG_MAP, KSERVE_NAMESPACE, _CONFIG)
    except RefusedError:
        return None
    return read_config(document) if document else None
