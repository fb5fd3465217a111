"""The API server's refusals become kdeploy's errors."""

from __future__ import annotations

import json

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from deployer.errors import (
    ConflictError,
    KdeployError,
    NotFoundError,
    RefusedError,
    RolloutFailedError,
    TargetError,
)
from deployer.targets.kserve.client.api_errors import (
    GoneError,
    LoginError,
    OutdatedError,
    PassingError,
    UnknownKindError,
    UntouchedError,
    read_refusal,
    unreachable,
)

HOST = "https://127.0.0.1:6443"
FORBIDDEN = (
    'inferenceservices.serving.kserve.io "digits" is forbidden: User "ci" cannot patch resource '
    '"inferenceservices" in API group "serving.kserve.io" in the namespace "team"'
)
ANONYMOUS = (
    'pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group ""'
    ' in the namespace "x"'
)


def test_a_full_quota_has_its_own_hint() -> None:
    assert "kubectl describe quota" in (answer(403, 'pods "x" is forbidden: exceeded quota: q').hint or "")


def answer(status: int, message: str = "", **more: object) -> KdeployError:
    body = json.dumps({"kind": "Status", "message": message, **more}).encode()
    return read_refusal(status, body, f"patch x on {HOST}")


@pytest.mark.parametrize(
    ("status", "message", "kind", "what"),
    [
        (401, "Unauthorized", RefusedError, "credentials"),
        (403, FORBIDDEN, RefusedError, r"user ci cannot patch inferenceservices\.serving\.kserve\.io"),
        (403, ANONYMOUS, RefusedError, "has no credentials"),
        (403, 'pods "x" is forbidden: exceeded quota: q', RolloutFailedError, "exceeded quota: q"),
        (404, 'namespaces "x" not found', NotFoundError, "not found"),
        (404, "the server could not find the requested resource", UnknownKindError, "kind of object"),
        (409, "the object has been modified", ConflictError, "another client changed the object"),
        (410, "too old resource version", GoneError, "too old"),
        (422, "spec.x: Invalid value", RolloutFailedError, r"invalid: spec\.x"),
        (400, 'admission webhook "w" denied the request: no', RolloutFailedError, "w denied the request: no"),
        (500, 'failed calling webhook "w": timeout', TargetError, "webhook w does not answer"),
        (429, "slow down", TargetError, "overloaded"),
        (503, "etcd", TargetError, "HTTP 503"),
        (418, "teapot", TargetError, "HTTP 418: teapot"),
        (302, "Found", LoginError, "a web page answered"),
        (200, "half an answer", PassingError, "not a JSON object"),
    ],
)
def test_each_refusal_has_its_error(status: int, message: str, kind: type[KdeployError], what: str) -> None:
    with pytest.raises(kind, match=what):
        raise answer(status, message)


def test_a_conflict_names_every_field_and_holder() -> None:
    causes = [
        {"reason": "FieldManagerConflict", "field": ".spec.a", "message": 'conflict with "kubectl" using v1'},
        {"reason": "FieldManagerConflict", "field": ".spec.b", "message": "unreadable"},
    ]
    error = answer(409, "Apply failed", details={"causes": causes})
    assert "spec.a is managed by kubectl; spec.b is managed by another manager" in error.what


def test_an_invalid_document_names_the_causes() -> None:
    error = answer(422, "long", details={"causes": [{"field": "spec.x", "message": "must be an integer"}]})
    assert error.what.endswith("spec.x: must be an integer")


@given(st.integers(400, 599), st.binary(max_size=200))
def test_any_body_makes_an_error_of_ours(status: int, body: bytes) -> None:
    error = read_refusal(status, body, HOST)
    assert isinstance(error, KdeployError)
    assert len(error.what) < 800


@pytest.mark.parametrize(
    "body", [b"[]", b"1", b'{"details": null, "message": null}', b'{"message": {"a": 1}}']
)
def test_a_body_of_another_shape_can_be_retried(body: bytes) -> None:
    assert read_refusal(500, body, HOST).retryable


@pytest.mark.parametrize(
    ("error", "what", "retryable"),
    [
        (urllib3.exceptions.NewConnectionError(None, "refused"), "cannot reach", True),  # type: ignore[arg-type]
        (urllib3.exceptions.ReadTimeoutError(None, "", "slow"), "does not answer", True),  # type: ignore[arg-type]
        (urllib3.exceptions.ProtocolError("reset"), "broke", True),
        (urllib3.exceptions.SSLError("CERTIFICATE_VERIFY_FAILED"), "certificate", False),
    ],
)
def test_each_connection_failure_has_its_error(
    error: urllib3.exceptions.HTTPError, what: str, retryable: bool
) -> None:
    made = unreachable(error, HOST)
    assert what in made.what
    assert made.where == HOST
    assert made.retryable is retryable


def test_a_broken_connection_can_be_retried() -> None:
    assert unreachable(OSError("reset"), HOST).what == "the connection to the API server broke"
    assert unreachable(urllib3.exceptions.TimeoutError("x"), HOST).what == "the API server does not answer"


def test_a_web_page_is_quoted_without_its_markup() -> None:
    page = b"<!DOCTYPE html>\n<style>p { color: red }</style><title>Sign in</title><p>to continue"
    login = read_refusal(200, page, HOST)
    assert isinstance(login, LoginError)
    assert "Sign in to continue" in login.what
    assert "color" not in login.what
    assert "HTTP 503): Sign in to continue" in read_refusal(503, page, HOST).what


def test_only_a_concurrent_change_is_outdated() -> None:
    assert isinstance(answer(409, "modified", reason="Conflict"), OutdatedError)
    assert not isinstance(answer(409, "there is one", reason="AlreadyExists"), OutdatedError)


def test_only_some_failures_leave_a_write_in_doubt() -> None:
    assert isinstance(answer(500, "oops"), PassingError)
    assert not isinstance(answer(500, "oops"), UntouchedError)
    assert isinstance(answer(429, "slow down"), UntouchedError)
    assert answer(500, "oops").where == f"patch x on {HOST}"
