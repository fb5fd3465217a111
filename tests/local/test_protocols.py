"""KServe's SDK, readiness, metrics and warm-up, with one real TorchServe."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

from deployer import predict
from deployer.config import Store, load_settings
from deployer.errors import InputRefusedError, PredictError, RolloutFailedError
from deployer.events import Event
from deployer.observed import Reference
from deployer.predict.metrics import read_metrics
from deployer.project import Project
from deployer.rollouts import Rollouts
from deployer.store.open import open_store
from deployer.targets.protocols import Via
from tests.local.client import Client

pytestmark = pytest.mark.torchserve

SERVICE = Reference("default", "echo")
HOST = {"Host": "echo.default.example.com"}
HANDLER = """
import os
import signal

from ts.utils.util import PredictionException


class Echo:
    def initialize(self, context):
        self.warm = 0

    def handle(self, data, context):
        answers = []
        for index, row in enumerate(data):
            value = row.get("data") or row.get("body")
            if context.get_request_id(index).startswith("warm-up"):
                self.warm += 1
            if value == "warm":
                value = self.warm
            if value == "refuse":
                raise ValueError("refused")
            if value == "dark":
                raise PredictionException("too dark", 422)
            if value == "pid":
                value = os.getpid()
            context.metrics.add_counter("RowsSeen", 1, index)
            context.metrics.add_metric("LastRow", index, unit="count", idx=index)
            answers.append(value)
        return answers
"""
METRICS = """
dimensions: [&model "ModelName", &level "Level"]
ts_metrics:
  counter:
    - {name: ts_inference_requests_total, unit: Count, dimensions: [model_name, model_version, hostname]}
model_metrics:
  counter:
    - {name: RowsSeen, unit: Count, dimensions: [*model, *level]}
  gauge:
    - {name: LastRow, unit: count, dimensions: [*model, *level]}
"""


def roll_out(client: Client, folder: Path, emit: Callable[[Event], None] = lambda _: None) -> None:
    flags = {
        "model.name": SERVICE.name,
        "model.version": "1.0",
        "model.handler": "handler.py",
        "serving.protocol-version": "grpc-v2",
        "serving.batch-size": "4",
        "serving.drain-seconds": "0",
        "serving.metrics-config": "metrics.yaml",
        "serving.warm-up": json.dumps(["samples"]),
    }
    settings = load_settings(None, environment={}, flags=flags, folder=folder)
    store = open_store(Store(uri="store"), folder)
    Rollouts(Project(settings, emit), store, client.target, emit).rollout(timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("echo")
    (root / "handler.py").write_text(HANDLER)
    (root / "metrics.yaml").write_text(METRICS)
    (root / "samples").mkdir()
    (root / "samples" / "two.json").write_text(json.dumps({"instances": ["a", "b"]}))
    (root / "samples" / "text.txt").write_text("hello")
    return root


@pytest.fixture(scope="module")
def echo(client: Client, folder: Path) -> Client:
    roll_out(client, folder)
    return client


def rest(echo: Client, protocol: str, use: Callable[[InferenceRESTClient, str], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with InferenceRESTClient(RESTConfig(protocol=protocol, timeout=20)) as client:
            return await use(client, echo.node.info().ingress or "")

    return asyncio.run(run())


def by_grpc(echo: Client, use: Callable[[InferenceGRPCClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        address = echo.target.reach.endpoint(SERVICE, Via.GRPC).url.removeprefix("http://")
        async with InferenceGRPCClient(address, timeout=20) as client:
            return await use(client)

    return asyncio.run(run())


def infer(*inputs: InferInput, **more: Any) -> InferRequest:
    return InferRequest(model_name=SERVICE.name, infer_inputs=list(inputs), **more)


def test_the_sdk_sends_v1_and_asks_for_readiness(echo: Client) -> None:
    name = SERVICE.name
    assert rest(echo, "v1", lambda c, url: c.is_model_ready(url, name, headers=HOST)) is True
    assert rest(echo, "v1", lambda c, url: c.is_server_live(url, headers=HOST)) is True
    body = {"instances": [1, [2]]}
    answer = rest(echo, "v1", lambda c, url: c.infer(url, body, model_name=name, headers=HOST))
    assert answer == {"predictions": [1, [2]]}


def test_the_sdk_sends_v2_and_asks_for_readiness(echo: Client) -> None:
    name = SERVICE.name
    assert rest(echo, "v2", lambda c, url: c.is_server_ready(url, headers=HOST)) is True
    assert rest(echo, "v2", lambda c, url: c.is_server_live(url, headers=HOST)) is True
    assert rest(echo, "v2", lambda c, url: c.is_model_ready(url, name, headers=HOST)) is True
    assert rest(echo, "v2", lambda c, url: c.is_model_ready(url, "other", headers=HOST)) is False
    tensor = InferInput(name="x", shape=[2, 2], datatype="FP32", data=[[1.0, 2.0], [3.0, 4.0]])
    answer = rest(echo, "v2", lambda c, url: c.infer(url, infer(tensor), model_name=name, headers=HOST))
    assert answer.outputs[0].data == [1.0, 2.0, 3.0, 4.0]


def test_the_sdk_asks_for_readiness_in_grpc(echo: Client) -> None:
    assert by_grpc(echo, lambda client: client.is_server_live()) is True
    assert by_grpc(echo, lambda client: client.is_server_ready()) is True
    assert by_grpc(echo, lambda client: client.is_model_ready(SERVICE.name)) is True
    with pytest.raises(grpc.aio.AioRpcError, match="model 'other' not found") as caught:
        by_grpc(echo, lambda client: client.is_model_ready("other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_the_sdk_sends_tensors_in_grpc(echo: Client) -> None:
    tensor = InferInput(name="x", shape=[3], datatype="INT64", data=[1, 2, 2**40])
    answer = by_grpc(echo, lambda client: client.infer(infer(tensor, request_id="7")))
    assert (answer.id, answer.outputs[0].name, answer.outputs[0].data) == ("7", "x", [1, 2, 2**40])
    raw = InferInput(name="x", shape=[2, 2], datatype="FP32")
    values = np.array([[0.5, -1.0], [3.0, 0.25]], dtype=np.float32)
    raw.set_data_from_numpy(values, binary_data=True)
    answer = by_grpc(echo, lambda client: client.infer(infer(raw)))
    assert answer.outputs[0].as_numpy().ravel().tolist() == values.ravel().tolist()
    strings = InferInput(name="s", shape=[2], datatype="BYTES", data=["é", "z"])
    answer = by_grpc(echo, lambda client: client.infer(infer(strings)))
    assert answer.outputs[0].data == ["é".encode(), b"z"]


@pytest.mark.parametrize(
    ("model", "value", "code", "message"),
    [
        ("other", "x", grpc.StatusCode.NOT_FOUND, "Model not found: other"),
        ("echo", "refuse", grpc.StatusCode.INTERNAL, "ValueError: refused"),
        ("echo", "dark", grpc.StatusCode.INVALID_ARGUMENT, "too dark"),
    ],
)
def test_an_error_has_its_code_and_message_in_grpc(
    echo: Client, model: str, value: str, code: grpc.StatusCode, message: str
) -> None:
    request = InferRequest(
        model_name=model, infer_inputs=[InferInput(name="s", shape=[1], datatype="BYTES", data=[value])]
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        by_grpc(echo, lambda client: client.infer(request))
    assert (caught.value.code(), caught.value.details()) == (code, message)


def test_predict_sends_files_in_grpc(echo: Client, tmp_path: Path) -> None:
    (text := tmp_path / "t.txt").write_text("très bien")
    (picture := tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    for name in ("refuse", "dark"):
        (tmp_path / name).write_text(name)
    files = [text, picture, tmp_path / "refuse", tmp_path / "dark"]
    with predict.Client(echo.target.reach.endpoint(SERVICE, Via.GRPC), SERVICE.name) as client:
        one, two, failed, refused = client.predict(files, "grpc-v2")
    assert isinstance(one, predict.Prediction)
    assert isinstance(two, predict.Prediction)
    assert one.value == "très bien"
    assert base64.b64decode(two.value) == picture.read_bytes()
    assert isinstance(failed, predict.Failure)
    assert type(failed.error) is PredictError
    assert isinstance(refused, predict.Failure)
    assert isinstance(refused.error, InputRefusedError)


def test_every_worker_has_answered_the_samples_before_it_was_ready(echo: Client) -> None:
    status, answer = echo.ask("/v1/models/echo:predict", {"instances": ["warm"]}, host=HOST["Host"])
    assert (status, answer) == (200, {"predictions": [3]})


def test_the_handlers_metrics_are_published_as_the_file_says(echo: Client) -> None:
    def seen() -> dict[str, tuple[str, float]]:
        found = read_metrics(echo.target.reach.endpoint(SERVICE, Via.METRICS))
        return {one.name: (one.kind, one.value) for one in found if one.model == SERVICE.name}

    before = seen()
    status, _ = echo.ask("/v1/models/echo:predict", {"instances": [1, 2, 3]}, host=HOST["Host"])
    assert status == 200
    after = seen()
    assert after["RowsSeen"] == ("counter", before["RowsSeen"][1] + 3)
    assert after["LastRow"] == ("gauge", 2.0)
    assert after["ts_inference_requests_total"][0] == "counter"


def test_readiness_tells_the_truth_while_the_only_worker_is_dead(echo: Client) -> None:
    [revision] = echo.node.info().services[0].revisions
    address = (revision.inference or "").removeprefix("http://")

    def ask(path: str, *instances: str) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(address, timeout=10)
        body = json.dumps({"instances": instances}) if instances else None
        connection.request("POST" if body else "GET", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    assert ask("/v2/health/ready") == (200, {"ready": True})
    _, answer = ask("/v1/models/echo:predict", "pid")
    [worker] = answer["predictions"]
    os.kill(worker, signal.SIGKILL)
    lost = "model echo has no READY worker"
    while ask("/v2/health/ready")[0] == 200:  # TorchServe notices the end of its socket
        pass
    assert ask("/v1/models/echo")[1] == {"name": "echo", "ready": False, "error": lost}
    assert ask("/v2/models/echo/ready")[0] == 503
    assert ask("/v2/health/live") == (200, {"live": True})
    while ask("/v2/health/ready")[0] != 200:
        pass
    _, answer = ask("/v1/models/echo:predict", "warm")
    assert answer == {"predictions": [3]}  # the new worker has answered the samples, too


@pytest.mark.full
def test_a_sample_that_fails_fails_the_rollout_with_its_name(echo: Client, folder: Path) -> None:
    sample = folder / "samples" / "bad.json"
    sample.write_text(json.dumps({"instances": ["refuse"]}))
    try:
        with pytest.raises(
            RolloutFailedError, match=r"warm-up sample bad\.json failed: HTTP 500: ValueError: refused"
        ):
            roll_out(echo, folder)
    finally:
        sample.unlink()
    assert echo.ask("/v1/models/echo:predict", {"instances": [1]}, host=HOST["Host"])[0] == 200
