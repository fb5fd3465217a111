"""An API server that is killed and restarted during a wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deployer.targets.kserve import Cluster
from tests.cluster.calls import roll
from tests.cluster.kube import Kube
from tests.cluster.play import A, Play, documents
from tests.cluster.test_watch import Waiting


@pytest.fixture
def kube(kube: Kube, tmp_path: Path) -> Iterator[Kube]:
    """An API server for this test, with the small CRDs of the tests, which start faster."""
    with Kube(tmp_path, None) as own:
        yield own


def test_a_wait_continues_after_the_restart(cluster: Cluster, kube: Kube, namespace: str) -> None:
    play = Play(kube, namespace)
    roll(cluster, documents(namespace))
    waiting = Waiting(cluster, play, A, 30)
    waiting.until(lambda status: True)
    kube.restart()
    play.replica_set(A, available=1)
    play.ready()
    waiting.end()
