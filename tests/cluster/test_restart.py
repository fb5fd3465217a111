"""An API server that is killed and starts anew, while a release is waited for."""

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
    """An API server of the test's own, on the tests' few CRDs: it starts sooner."""
    with Kube(tmp_path, None) as own:
        yield own


def test_it_is_waited_for_and_gone_on_with(cluster: Cluster, kube: Kube, namespace: str) -> None:
    play = Play(kube, namespace)
    roll(cluster, documents(namespace))
    waiting = Waiting(cluster, play, A, 30)
    waiting.until(lambda status: True)
    kube.restart()
    play.replica_set(A, available=1)
    play.ready()
    waiting.end()
