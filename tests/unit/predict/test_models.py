"""TorchServe's management API, with responses recorded from TorchServe 0.12.0."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

import pytest

from deployer.errors import ConflictError, NotFoundError, TargetError
from deployer.predict import Models, RegisteredModel
from deployer.targets.protocols import Endpoint
from tests.clocks import patience
from tests.unit.predict.loopback import Reply


def torchserve(code: int, kind: str, message: str) -> Reply:
    return Reply(code, json.dumps({"code": code, "type": kind, "message": message}, indent=2).encode())


def reply_with(document, status: int = 200) -> Reply:
    return Reply(status, json.dumps(document, indent=2).encode(), {"content-type": "application/json"})


@pytest.fixture
def models(server):
    opened = Models(Endpoint(server.url), timeout=10, headers={"Authorization": "Bearer x"})
    yield opened
    opened.close()


def last(server) -> tuple[str, str, dict[str, str]]:
    asked = server.asked[-1]
    parts = urlsplit(asked.path)
    assert asked.headers["authorization"] == "Bearer x"
    return asked.method, parts.path, {key: value for key, [value] in parse_qs(parts.query).items()}


def test_all_pages_are_read(server, models):
    def answering(asked) -> Reply:
        query = parse_qs(urlsplit(asked.path).query)
        start = int(query.get("next_page_token", ["0"])[0])
        assert query["limit"] == ["100"]
        page = [{"modelName": f"m{n}", "modelUrl": f"m{n}.mar"} for n in range(start, min(start + 100, 250))]
        more = {"nextPageToken": str(start + 100)} if start + 100 < 250 else {}
        return reply_with(more | {"models": page})

    server.answering = answering
    assert models.list() == [RegisteredModel(f"m{n}", f"m{n}.mar") for n in range(250)]
    assert len(server.asked) == 3


def test_a_page_without_a_new_model_ends_the_list(server, models):
    server.answering = lambda asked: reply_with(
        {"nextPageToken": "1", "models": [{"modelName": "m", "modelUrl": "m.mar"}]}
    )
    assert len(models.list()) == 1
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("version", "path"), [(None, "/models/m"), ("1.0", "/models/m/1.0"), ("all", "/models/m/all")]
)
def test_a_model_is_described(server, models, version, path):
    document = [{"modelName": "m", "workers": [{"id": "9000", "status": "READY"}]}]
    server.answering = lambda asked: reply_with(document)
    assert models.describe("m", version) == document
    assert last(server) == ("GET", path, {})


def test_a_model_is_registered(server, models):
    server.answering = lambda asked: reply_with(
        {"status": 'Model "m" Version: 1.0 registered with 1 initial workers'}
    )
    assert models.register("m.mar").startswith('Model "m"')
    assert last(server) == (
        "POST",
        "/models",
        {"url": "m.mar", "initial_workers": "1", "synchronous": "true"},
    )
    models.register(
        "https://store/a b&c.mar",
        model_name="other",
        initial_workers=0,
        batch_size=8,
        max_batch_delay=50,
    )
    assert last(server)[2] == {
        "url": "https://store/a b&c.mar",
        "model_name": "other",
        "initial_workers": "0",
        "batch_size": "8",
        "max_batch_delay": "50",
        "synchronous": "true",
    }


def test_a_model_is_scaled_made_the_default_and_unregistered(server, models):
    server.answering = lambda asked: reply_with({"status": "Processing worker updates..."}, 202)
    assert models.scale("m", min_workers=2, max_workers=4) == "Processing worker updates..."
    assert last(server) == ("PUT", "/models/m", {"min_worker": "2", "max_worker": "4", "synchronous": "true"})
    models.scale("m", "2.0", min_workers=0)
    assert last(server) == ("PUT", "/models/m/2.0", {"min_worker": "0", "synchronous": "true"})
    models.set_default("m", "2.0")
    assert last(server) == ("PUT", "/models/m/2.0/set-default", {})
    models.unregister("m", "1.0")
    assert last(server) == ("DELETE", "/models/m/1.0", {})
    models.unregister("a/../b?c#d")
    assert server.asked[-1].path == "/models/a%2F..%2Fb%3Fc%23d"


REFUSALS = [
    (torchserve(404, "ModelNotFoundException", "Model not found: m"), NotFoundError, "kdeploy models list"),
    (torchserve(404, "ModelNotFoundException", "Model not found at: nope.mar"), NotFoundError, "models list"),
    (
        torchserve(404, "ModelVersionNotFoundException", "Model version 7 does not exist for model m"),
        NotFoundError,
        "kdeploy models describe",
    ),
    (
        torchserve(404, "ResourceNotFoundException", "Requested resource is not found"),
        TargetError,
        "management port",
    ),
    (
        torchserve(409, "ConflictStatusException", "Model version 1.0 is already registered for model m"),
        ConflictError,
        "kdeploy models unregister",
    ),
    (
        torchserve(403, "InvalidModelVersionException", "Cannot remove default version 1.0 for model m"),
        TargetError,
        "kdeploy models set-default",
    ),
    (
        torchserve(405, "MethodNotAllowedException", "Requested method is not allowed"),
        TargetError,
        "enable_model_api",
    ),
    (
        torchserve(400, "BadRequestException", "max_worker cannot be less than min_worker."),
        TargetError,
        "kdeploy logs",
    ),
    (torchserve(400, "InvalidKeyException", "Token Authorization failed."), TargetError, "disable_token"),
    (Reply(502, b""), TargetError, "kdeploy logs"),
]


@pytest.mark.parametrize(("reply", "kind", "hint"), REFUSALS)
def test_each_refusal_has_its_kind_of_error_and_a_hint(server, models, reply, kind, hint):
    server.answering = lambda asked: reply
    with pytest.raises(kind) as caught:
        models.unregister("m")
    assert type(caught.value) is kind
    assert hint in caught.value.hint
    message = json.loads(reply.body)["message"] if reply.body else "HTTP 502 without a reason"
    assert message in caught.value.what


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"3", b"[1]", b'{"status": 3}', b'{"models": 3}', b'{"models": [{}]}']
)
def test_a_response_that_is_not_torchserves_is_an_error(server, models, body):
    server.answering = lambda asked: Reply(200, body)
    for call in (models.list, lambda: models.describe("m"), lambda: models.set_default("m", "1")):
        with pytest.raises(TargetError, match="not TorchServe's"):
            call()


def test_a_refused_connection_is_a_target_error():
    models = Models(Endpoint("http://127.0.0.1:1"), patience=patience())
    with pytest.raises(TargetError, match="connection refused"):
        models.list()
