"""A cluster with KServe as a target: its services, its journal and its reach, over one connection."""

from __future__ import annotations

from collections.abc import Callable

from deployer.config import KServeTarget, Store
from deployer.patience import PATIENCE, Patience
from deployer.targets.kserve.target.helper_pod import HelperPod
from deployer.targets.kserve.target.journal import Journal
from deployer.targets.kserve.target.reach import Reach
from deployer.targets.kserve.target.services import Services
from deployer.targets.kserve.target.session import Session
from deployer.targets.protocols import Target


class Cluster(Session):
    """One namespace of a cluster; connects when it is first used, and closes at the end of its `with`."""

    def __init__(
        self,
        config: KServeTarget,
        store: Store | None = None,
        *,
        force_conflicts: bool = False,
        patience: Patience = PATIENCE,
    ) -> None:
        super().__init__(config, store or Store(), force=force_conflicts, patience=patience)
        self.journal = Journal(self)
        self.services = Services(self, self.journal)
        self.reach = Reach(self)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def target(self) -> Target:
        """The three protocols of a target."""
        return Target(services=self.services, journal=self.journal, reach=self.reach)

    def shell(self, image: str, note: Callable[[str], None]) -> HelperPod:
        """Return a shell in the claim of the model store; its pod is created when it is first used."""
        return HelperPod(self, image, note)
