"""The connection to one namespace of a cluster, shared by the target's services, journal and reach."""

from __future__ import annotations

from functools import cached_property

from deployer.config import KServeTarget, Store
from deployer.manifest import USER
from deployer.observed import Document, Reference
from deployer.patience import Patience
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.connection import Connection
from deployer.targets.kserve.client.kubeconfig import connect
from deployer.targets.kserve.preflight.capabilities import Discovery
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE
from deployer.targets.protocols import not_found


class Session:
    """Connects when it is first used. With `force`, it takes over fields that other managers hold."""

    def __init__(self, config: KServeTarget, store: Store, *, force: bool, patience: Patience) -> None:
        self.config, self.store, self.force, self.patience = config, store, force, patience

    @cached_property
    def connection(self) -> Connection:
        """The connection to the cluster. Raises ConfigError, TargetError."""
        return connect(self.config.kubeconfig, self.config.context, self.patience)

    @cached_property
    def api(self) -> Api:
        """The cluster's API."""
        return Api(self.connection)

    @cached_property
    def discovery(self) -> Discovery:
        """The capabilities of the cluster."""
        return Discovery(self.api)

    @property
    def namespace(self) -> str:
        """The namespace of references without one: the configured one, or the context's."""
        return self.config.namespace or self.connection.namespace

    @property
    def mode(self) -> str:
        """The deployment mode: the configured one, or KServe's default."""
        return self.config.deployment_mode or self.discovery.mode

    @property
    def user(self) -> int | None:
        """The user of a pod that kdeploy itself creates; None if the namespace assigns it."""
        chosen = self.config.run_as_user
        if isinstance(chosen, int):
            return chosen
        return None if chosen or self.discovery.assigns_user(self.namespace) else USER

    def find(self, reference: Reference) -> Document | None:
        """Return an InferenceService, or None if it does not exist."""
        return self.api.get(INFERENCE_SERVICE, reference.namespace, reference.name)

    def get(self, reference: Reference) -> Document:
        """Return an InferenceService. Raises NotFoundError."""
        if found := self.find(reference):
            return found
        raise not_found(reference, self.connection.where)

    def close(self) -> None:
        """Close the connections, if there are any."""
        if "connection" in self.__dict__:
            self.connection.close()
