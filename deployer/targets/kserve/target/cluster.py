"""A cluster with KServe as a target: its services, its journal and the ways in, over one connection."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from deployer.config import KServeTarget, Store
from deployer.patience import PATIENCE, Patience
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.target.helper_pod import HelperPod
from deployer.targets.kserve.target.journal import Journal
from deployer.targets.kserve.target.reach import Reach
from deployer.targets.kserve.target.services import Services
from deployer.targets.kserve.target.session import Session
from deployer.targets.protocols import Target


class Cluster:
    """One namespace of a cluster; connects when it is first used, and closes at the end of its `with`."""

    def __init__(
        self,
        config: KServeTarget,
        store: Store | None = None,
        *,
        force_conflicts: bool = False,
        patience: Patience = PATIENCE,
    ) -> None:
        self._session = Session(config, store or Store(), force=force_conflicts, patience=patience)
        self.journal = Journal(self._session)
        self.services = Services(self._session, self.journal)
        self.reach = Reach(self._session)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    @property
    def target(self) -> Target:
        """The cluster as every target is used."""
        return Target(services=self.services, journal=self.journal, reach=self.reach)

    @property
    def api(self) -> Api:
        """The cluster's API."""
        return self._session.api

    def shell(self, image: str, note: Callable[[str], None]) -> HelperPod:
        """Return a shell in the claim of the model store; its Pod is created when it is first used."""
        return HelperPod(self._session, image, note)
