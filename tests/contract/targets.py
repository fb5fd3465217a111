"""The targets under test, with the servers that make a release ready or failed.

To test another kind of target, implement `Side` and add it to SIDES in test_target.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from deployer.bundle import Bundle
from deployer.config import KServeTarget
from deployer.observed import Document, Reference
from deployer.targets.kserve import Cluster
from deployer.targets.kserve.state.diagnosis import CANNOT_LOAD
from deployer.targets.local import OneNode
from deployer.targets.memory import MemoryTarget
from deployer.targets.protocols import Target
from tests.bundles import A, B, make_bundle
from tests.clocks import FakeClock
from tests.cluster.kube import Kube
from tests.cluster.play import Play


class Side(Protocol):
    """A target, and control over its servers."""

    target: Target

    def another(self) -> Target:
        """Open the same target again, as another process does."""

    def bundle(self, release: str, service: str, *, loads: bool = True, **more: Any) -> Bundle:
        """Make a bundle like `tests.bundles.make_bundle`; with `loads=False` its release always fails."""

    def settle(self, bundle: Bundle) -> None:
        """Simulate the target's servers after a bundle was applied: its release loads or fails.

        Does nothing if the servers are real.
        """

    def collect(self, service: str) -> None:
        """Simulate garbage collection after a service was deleted."""


class MemorySide:
    """The target in memory, with a clock that does not wait."""

    def __init__(self) -> None:
        self._memory = MemoryTarget(clock=FakeClock(), lag=2)
        self.target = self._memory.target

    def another(self) -> Target:
        return self._memory.target

    def bundle(self, release: str, service: str, *, loads: bool = True, **more: Any) -> Bundle:
        self._memory.broken.pop(release, None)
        if not loads:
            self._memory.broken[release] = "no module named torch"
        return make_bundle(release, service=Reference("default", service), **more)

    def settle(self, bundle: Bundle) -> None:
        """Do nothing: observations make the release ready."""

    def collect(self, service: str) -> None:
        """Do nothing: the deletion is complete."""


class LocalSide:
    """A supervisor with real TorchServes. A release that does not load has no folder, and starts none."""

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
        """Do nothing: the servers are real."""

    def collect(self, service: str) -> None:
        """Do nothing: the deletion is complete."""


class KServeSide:
    """The KServe target in Knative mode on a real API server; KServe, Knative and kubelet are simulated."""

    def __init__(self, kube: Kube, kubeconfig: Path, after: ExitStack) -> None:
        self._kube, self._after = kube, after
        self._played: dict[str, PlayedService] = {}
        self._config = KServeTarget(
            kubeconfig=str(kubeconfig),
            namespace="default",
            deployment_mode="Knative",
            wait_window=0.2,
            ingress="http://127.0.0.1:9",
        )
        self._broken: set[tuple[str, str]] = set()
        self.target = self.another()

    def another(self) -> Target:
        return self._after.enter_context(Cluster(self._config)).target

    def bundle(self, release: str, service: str, *, loads: bool = True, **more: Any) -> Bundle:
        if not loads:
            self._broken.add((service, release))
        return make_bundle(release, service=Reference("default", service), runtime=None, **more)

    def settle(self, bundle: Bundle) -> None:
        service = bundle.reference.name
        played = self._played.setdefault(service, PlayedService(Play(self._kube, "default", service)))
        if (service, bundle.release) in self._broken:
            played.fail(bundle.release)
        else:
            played.load(bundle.release, bundle.percent)

    def collect(self, service: str) -> None:
        """Delete the journal, as the garbage collector does after the service is deleted."""
        path = "/apis/apps/v1/namespaces/default/controllerrevisions"
        for one in self._kube.get(path)["items"]:
            if one["metadata"]["name"].startswith(f"{service}-"):
                self._kube.request("DELETE", f"{path}/{one['metadata']['name']}")


class PlayedService:
    """Writes the status, revisions and pods of one service by KServe's rules in Knative mode."""

    def __init__(self, play: Play) -> None:
        self._play = play
        self._revisions: dict[str, str] = {}
        self._failed: dict[str, Document] = {}
        self._split: dict[str, int] = {}
        self._rolled_out = ""

    def load(self, release: str, percent: int) -> None:
        """Make a release ready, with the wanted percentage of traffic."""
        if release not in self._revisions:
            self._create(release, main={"running": {}}, ready=True)
        if percent >= 100 or self._rolled_out in ("", release):
            self._rolled_out, self._split = release, {release: 100}
        else:
            self._split = {release: percent, self._rolled_out: 100 - percent}
        self._write(created=release, ready=release)

    def fail(self, release: str) -> None:
        """End the container of a release because its model cannot be loaded, each time in a new pod."""
        ended = {"exitCode": CANNOT_LOAD, "reason": "Error", "message": "ImportError: no torch"}
        if release in self._failed:
            self._play.gone(self._failed.pop(release))
            self._failed[release] = self._play.pod(release, main={"terminated": ended})
        elif release not in self._revisions:
            self._failed[release] = self._create(release, main={"terminated": ended})
        if self._split:
            self._write(created=release, ready=next(iter(self._split)))

    def _create(self, release: str, **pod: Any) -> Document:
        made = self._play.revision(release, len(self._revisions) + 1)
        self._revisions[release] = made["metadata"]["name"]
        return self._play.pod(release, **pod)

    def _write(self, *, created: str, ready: str) -> None:
        tags = ("latest", "prev")
        traffic = [
            {
                "revisionName": self._revisions[release],
                "percent": percent,
                "tag": tag,
                "url": f"http://{tag}-{self._play.name}-predictor.default.example.com",
            }
            for (release, percent), tag in zip(self._split.items(), tags, strict=False)
        ]
        names = self._revisions[ready], self._revisions[created]
        self._play.ready_knative(names[0], traffic, created=names[1])
