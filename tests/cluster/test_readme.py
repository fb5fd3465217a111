"""The commands that the README names for a cluster, on a real API server and an ingress on loopback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cluster.commands import Kdeploy, become_ready
from tests.cluster.play import Play
from tests.guides import blocks, section
from tests.unit.predict.loopback import Reply, Server

ROOT = Path(__file__).parents[2]


def test_the_readme_commands_for_a_cluster(
    kdeploy: Kdeploy, play: Play, kserve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = section((ROOT / "README.md").read_text("utf-8"), "On a cluster")
    lines = [line.partition("#")[0].split() for block in blocks(text) for line in block.text.splitlines()]
    doctor, rollout, predict = (line[1:] for line in lines if line[:1] == ["kdeploy"])
    shutil.copy(ROOT / "examples/digits/samples/3-0.png", "image.jpg")
    kserve()

    assert kdeploy(*doctor).code == 0
    with ThreadPoolExecutor(1) as pool:
        pool.submit(become_ready, play)
        ended = kdeploy(*rollout)
    assert ended.code == 0, ended.err

    server = Server()
    content = {"Content-Type": "application/json"}
    server.answering = lambda asked: Reply(200, json.dumps({"predictions": [7]}).encode(), content)
    monkeypatch.setenv("KDEPLOY_TARGETS_PRODUCTION_INGRESS", server.url)
    try:
        assert kdeploy(*predict).out == "image.jpg   7\n"
    finally:
        server.close()
    (asked,) = server.asked
    host = urlsplit(play.service()["status"]["url"]).hostname
    assert (asked.path, asked.headers["host"]) == ("/v1/models/digits:predict", host)
