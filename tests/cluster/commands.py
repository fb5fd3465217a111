"""Helpers for tests of commands: a command's result, and the cluster's part of a first rollout."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.cluster.play import Play


class Ended:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Kdeploy = Callable[..., Ended]


def become_ready(play: Play) -> str:
    """Wait for the service, and write the status that makes its release ready; return the release."""
    end = time.monotonic() + 20
    while play.kube.request("GET", play._service)[0] == 404:
        assert time.monotonic() < end
        time.sleep(0.02)
    release = play.service()["metadata"]["labels"]["kdeploy.dev/release"]
    play.replica_set(release, available=1)
    play.ready()
    return str(release)
