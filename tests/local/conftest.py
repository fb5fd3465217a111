"""Local targets for tests. After the tests, none of their processes is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployer.targets.local import OneNode
from deployer.targets.local.processes import STATE_MARK, find_marked
from tests.local.client import Client
from tests.local.releases import ANSWER, make_release


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two releases with different answers, in a folder whose name is not ASCII."""
    folder = tmp_path_factory.mktemp("model störe")
    for release in ("a", "b"):
        make_release(folder / release, "demo", ANSWER.format(release=release))
    return folder


@pytest.fixture(scope="session")
def open_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Client]]:
    """Opens local targets; stops them at the end, and checks that no process is left."""
    nodes: list[tuple[OneNode, Path]] = []

    def open_one() -> Client:
        state = tmp_path_factory.mktemp("a projéct") / ".kdeploy"
        node = OneNode(state=state, namespace="default", ingress_host="127.0.0.1", ingress_port=0)
        nodes.append((node, state))
        return Client(node, state)

    yield open_one
    with ThreadPoolExecutor() as pool:
        stopping = [pool.submit(node.stop) for node, _ in nodes]
    for one in stopping:
        one.result()
    left = [p for _, state in nodes for p in find_marked({STATE_MARK: str(state.resolve() / "local")})]
    assert left == []


@pytest.fixture(scope="module")
def client(open_node: Callable[[], Client]) -> Client:
    """One local target for the tests of a module."""
    return open_node()
