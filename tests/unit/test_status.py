"""The answers about readiness and metadata of the V1 and V2 protocols."""

import asyncio

import pytest

from manifests.status import Status

Answer = tuple[int, dict[str, object]]


def ask(path: str, reason: str = "", *, draining: bool = False) -> Answer | None:
    status = Status({"digits": "1.0"}, lambda: reason)
    question = status.find(path.encode())
    return asyncio.run(status.answer(question, draining=draining)) if question else None


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/", {"status": "alive"}),
        ("/v1/models", {"models": ["digits"]}),
        ("/v1/models/digits", {"name": "digits", "ready": True}),
        ("/v1/models/d%69gits?x=1", {"name": "digits", "ready": True}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models", {"models": ["digits"]}),
        ("/v2/models/digits/ready", {"name": "digits", "ready": True}),
        ("/v2/models/digits/versions/1.0/ready", {"name": "digits", "ready": True}),
    ],
)
def test_a_ready_model(path: str, document: dict[str, object]) -> None:
    assert ask(path) == (200, document)


@pytest.mark.parametrize("path", ["/v2/models/digits", "/v2/models/digits/versions/1.0"])
def test_the_metadata_of_a_model_names_its_version_and_does_not_depend_on_readiness(path: str) -> None:
    metadata = {"versions": ["1.0"], "platform": "pytorch_torchserve", "inputs": [], "outputs": []}
    assert ask(path, "no worker") == (200, {"name": "digits", **metadata})


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_metadata_of_the_server(path: str) -> None:
    answer = ask(path, "no worker")
    assert answer
    assert (answer[0], answer[1]["name"]) == (200, "torchserve")
    assert answer[1]["version"]


@pytest.mark.parametrize(
    ("path", "name"),
    [("/v1/models/digits", "digits"), ("/v2/models/digits/ready", "digits"), ("/v2/health/ready", None)],
)
def test_a_model_without_a_worker_is_not_ready_and_the_reason_is_given(path: str, name: str | None) -> None:
    named = {"name": name} if name else {}
    lost = "model digits has no READY worker"
    assert ask(path, lost) == (503, {**named, "ready": False, "error": lost})
    assert ask(path, draining=True) == (503, {**named, "ready": False, "error": "the server is draining"})


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v1/models/other", "model 'other' not found"),
        ("/v2/models/other", "model 'other' not found"),
        ("/v2/models/other/ready", "model 'other' not found"),
        ("/v2/models/digits/versions/2/ready", "version '2' of model 'digits' not found"),
    ],
)
def test_an_unknown_model_is_not_found(path: str, error: str) -> None:
    assert ask(path) == (404, {"error": error})


@pytest.mark.parametrize(
    "path",
    [
        "/ping", "/predictions/digits", "/v1/models/digits:predict", "/v1/models/digits:explain", "/v1",
        "/v2/models/digits/infer", "/v2/models/digits/versions/1.0/infer", "/v2/health", "/models",
        "/v1/models/a/b",
    ],
)  # fmt: skip
def test_torchserve_answers_everything_else(path: str) -> None:
    assert ask(path) is None


def test_concurrent_questions_share_one_look() -> None:
    looks = []
    status = Status({"m": "1"}, lambda: looks.append(1) or "")

    async def both() -> list[str]:
        return await asyncio.gather(status.reason(), status.reason())

    assert asyncio.run(both()) == ["", ""]
    assert len(looks) == 1
