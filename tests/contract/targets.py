"""The far side of a target: what makes its releases become ready, or fail, while a test looks on.

To hold one more kind of target to the contract, implement `Side` and add it to the fixture `side` of
test_target.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from deployer.bundle import Bundle
from deployer.observed import Reference
from deployer.targets.local import OneNode
from deployer.targets.memory import MemoryTarget
from deployer.targets.protocols import Target
from tests.bundles import A, B, make_bundle
from tests.fake_clock import FakeClock


class Side(Protocol):
    """One target, and what is around it."""

    target: Target

    def another(self) -> Target:
        """Open the same target once more, as another process does."""

    def bundle(self, release: str, service: str, *, loads: bool = True, **more: Any) -> Bundle:
        """Make a bundle as `tests.bundles.make_bundle` does; one that does not load fails for good."""

    def settle(self, bundle: Bundle) -> None:
        """Do what the target's servers do after a bundle was applied, where they are not real: load, or fail.

        What is observed from then on, sooner or later, is what comes of it.
        """


class MemorySide:
    """The target in memory, on a clock that does not wait."""

    def __init__(self) -> None:
        self._memory = MemoryTarget(clock=FakeClock(), lag=2)
        self.target = self._memory.target

    def another(self) -> Target:
        return self._memory.target

    def bundle(self, release: str, service: str, *, loads: bool = True, **more: Any) -> Bundle:
        if not loads:
            self._memory.broken[release] = "no module named torch"
        return make_bundle(release, service=Reference("default", service), **more)

    def settle(self, bundle: Bundle) -> None:
        """Nothing: it settles by being observed."""


class LocalSide:
    """A supervisor with real TorchServes; a release that does not load has no folder, and starts none."""

    def __init__(self, open_node: Callable[[], OneNode], store: Path) -> None:
        self._open, self._store = open_node, store
        self.target = open_node().target

    def another(self) -> Target:
        return self._open().target

    def bundle(self, release: str, service: str, *, loads: bool = True, **more: Any) -> Bundle:
        folder = self._store / ({A: "a", B: "b"}[release] if loads else "gone")
        return make_bundle(
            release,
            service=Reference("default", service),
            capabilities=self.target.services.capabilities(),
            storage_uri=f"{folder.as_uri()}/",
            runtime=None,
            drain_seconds=1,
            response_timeout=60,
            **more,
        )

    def settle(self, bundle: Bundle) -> None:
        """Nothing: its servers are real."""
