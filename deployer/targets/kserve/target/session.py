"""One namespace of a cluster in the name of one user: what a target's services, journal and reach share."""

from __future__ import annotations

from functools import cached_property

from deployer.config import KServeTarget, Store
from deployer.errors import NotFoundError
from deployer.observed import Document, Reference
from deployer.patience import Patience
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.connection import Connection, connect
from deployer.targets.kserve.preflight.capabilities import Discovery
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE


class Session:
    """Connects when it is first used. With `force`, fields that other managers hold are taken over."""

    def __init__(self, config: KServeTarget, store: Store, *, force: bool, patience: Patience) -> None:
        self.config, self.store, self.force, self.patience = config, store, force, patience

    @cached_property
    def connection(self) -> Connection:
        """The way to the cluster. Raises ConfigError, TargetError."""
        return connect(self.config.kubeconfig, self.config.context, self.patience)

    @cached_property
    def api(self) -> Api:
        """The cluster's API."""
        return Api(self.connection)

    @cached_property
    def discovery(self) -> Discovery:
        """What the cluster can do."""
        return Discovery(self.api)

    @property
    def namespace(self) -> str:
        """The namespace of references without one: the config's, or the context's."""
        return self.config.namespace or self.connection.namespace

    @property
    def mode(self) -> str:
        """The deployment mode: the config's, or the one that KServe would choose."""
        return self.config.deployment_mode or self.discovery.mode

    def find(self, reference: Reference) -> Document | None:
        """Return an InferenceService, or None where there is none."""
        return self.api.get(INFERENCE_SERVICE, reference.namespace, reference.name)

    def get(self, reference: Reference) -> Document:
        """Return an InferenceService. Raises NotFoundError."""
        if found := self.find(reference):
            return found
        raise NotFoundError(f"service {reference} not found", hint="`kdeploy list` shows what exists")

    def close(self) -> None:
        """Close the connections, if there are any."""
        if "connection" in self.__dict__:
            self.connection.close()
