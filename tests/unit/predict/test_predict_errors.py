"""What an answer that is no success means, on answers recorded from TorchServe, KServe, Istio and others."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.predict.predict_errors import TEXT_MAX, Asked, explain, read_refusal

ASKED = Asked(model="digits", host="digits.default.example.com", size=900, limit=1000)


def torchserve(code: int, kind: str, message: str) -> bytes:
    return json.dumps({"code": code, "type": kind, "message": message}, indent=2).encode()


def wrapped(inner: bytes, status: str) -> bytes:
    url = "http://0.0.0.0:8085/v1/models/digits:predict"
    return json.dumps({"error": f"HTTPStatusError : {inner.decode()}, '{status}' for url '{url}'"}).encode()


NO_WORKER = (
    'Model "digits" has no worker to serve inference request. Please use scale workers API to add workers. '
    "If this is a sequence inference, please check if it is closed, or expired; or exceeds "
    "maxSequenceJobQueueSize"
)
FAILED = torchserve(503, "InternalServerException", "Prediction failed")
ENVOY = {"server": "istio-envoy"}
NGINX = b"<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n<body></body></html>"

RECORDED = [
    # status, headers, body, words of the sentence, words of the hint
    (
        404,
        {},
        torchserve(404, "ModelNotFoundException", "Model not found: digits"),
        "there is no model digits on this server. TorchServe says: Model not found",
        "kdeploy models list",
    ),
    (
        404,
        {},
        torchserve(404, "ModelVersionNotFoundException", "Model version: 9 does not exist for model: digits"),
        "there is no model digits",
        "kdeploy models list",
    ),
    (
        404,
        {},
        torchserve(404, "ResourceNotFoundException", "Requested resource is not found"),
        "no such path",
        "--kserve",
    ),
    (
        404,
        {},
        b'{"error":"Model with name digits does not exist."}',
        "there is no model digits",
        "models list",
    ),
    (404, {"server": "uvicorn"}, b'{"detail":"Not Found"}', "no such path", "--kserve"),
    (
        404,
        ENVOY,
        b"",
        "no service for the Host header digits.default.example.com. (from the ingress (istio-envoy))",
        "kdeploy status",
    ),
    (503, {}, FAILED, "the handler failed on this input. TorchServe says: Prediction failed", "kdeploy logs"),
    (
        500,
        {},
        wrapped(FAILED, "503 Service Unavailable"),
        "HTTP 503: the handler failed on this input. TorchServe, through KServe's wrapper, says: Predic",
        "kdeploy logs",
    ),
    (
        500,
        {},
        wrapped(b"", "413 Request Entity Too Large"),
        "HTTP 413: the request has 900 bytes",
        "max-request-size",
    ),
    (
        503,
        {},
        torchserve(503, "ServiceUnavailableException", NO_WORKER),
        "no worker takes",
        "models describe",
    ),
    (
        500,
        {},
        torchserve(500, "InternalServerException", "Worker died."),
        "the worker died",
        "raise serving.response-timeout if the model is slow, serving.max-response-size if the log says",
    ),
    (
        500,
        {},
        b'{"error": "the answer has 12,967,202 bytes, serving.max-response-size is 6,553,500"}',
        "the answer is too large. the model server says: the answer has 12,967,202 bytes",
        "raise serving.max-response-size, then kdeploy rollout",
    ),
    (
        500,
        {},
        b'{"error": "its batch failed, with no time to try this row alone: ValueError: 7", "row": 0}',
        "another row of the same batch failed",
        "send the request again",
    ),
    (
        507,
        {},
        torchserve(507, "InternalServerException", "Out of resources"),
        "out of memory",
        "serving.batch-size",
    ),
    (
        503,
        {},
        torchserve(503, "InternalServerException", "number of batch response mismatched, expect: 4, got: 1"),
        "one answer for each request",
        "serving.batch-size = 1",
    ),
    (
        503,
        {},
        torchserve(503, "InternalServerException", "Invalid model predict output"),
        "cannot send",
        "a list",
    ),
    (400, {}, torchserve(400, "InvalidKeyException", "Token failed."), "a token", "disable_token"),
    (
        405,
        {},
        torchserve(405, "MethodNotAllowedException", "Requested method is not allowed"),
        "refused",
        "status",
    ),
    (503, {}, b'{"error":"Model with name digits is not ready."}', "not loaded yet", "kdeploy status"),
    (
        500,
        {},
        b'{"error":"TypeError : Type is not JSON serializable: bytes"}',
        "could not read the body",
        "--kserve",
    ),
    (
        400,
        {},
        b'{"error": "the body is not valid JSON: x", "row": 2}',
        "does not accept this input. the handler says: row 2: the body",
        "compare",
    ),
    (
        500,
        {},
        b'{"error": "ValueError: cannot identify image file", "row": 0}',
        "the model failed",
        "kdeploy logs",
    ),
    (413, {}, b"", "the request has 900 bytes, more than the server's own limit", "now 1000"),
    (
        413,
        {"server": "nginx"},
        NGINX,
        "the ingress (nginx) says: 413 Request Entity Too Large",
        "max-request-size",
    ),
    (503, ENVOY, b"no healthy upstream", "scales up from zero", "kdeploy status"),
    (
        503,
        {},
        b"upstream connect error or disconnect/reset before headers",
        "the ingress (envoy)",
        "kdeploy logs",
    ),
    (502, {"server": "Python/3.11 aiohttp/3.14.5"}, b"", "not ready", "kdeploy status"),
    (
        503,
        {"server": "Python/3.11 aiohttp/3.14.5", "retry-after": "1"},
        b'{"error": "digits-00002 ended while it was answering: no answer"}',
        "the service is not ready, or scales up from zero. the ingress says: digits-00002 ended",
        "kdeploy status",
    ),
    (
        404,
        {},
        b'{"error": "no InferenceService answers to Host \'x\'", "hosts": ["a.default.example.com"]}',
        "no service for the Host header digits.default.example.com. the ingress says: no Inf",
        "kdeploy status",
    ),
    (504, ENVOY, b"upstream request timeout", "in the time", "serving.response-timeout"),
    (408, {}, b"", "in the time", "serving.response-timeout"),
    (429, {}, b"", "too many requests", "max-replicas"),
    (403, ENVOY, b"RBAC: access denied", "AuthorizationPolicy", "--token @"),
    (403, {}, b"", "do not allow access", "--token @"),
    (
        401,
        {"server": "x"},
        b"Jwt is missing",
        "no valid credentials. the server (x) says: Jwt is missing",
        "--token @",
    ),
    (
        302,
        {"location": "/dex/auth?client_id=kubeflow&state=abc"},
        b"",
        "the login page /dex/auth:",
        "--cookie authservice_session=@",
    ),
    (
        422,
        {},
        b'{"error": "no digit", "row": 3}',
        "failed on this input. the handler says: row 3",
        "traceback",
    ),
    (301, {"location": "https://models.example.com/v1"}, b"", "redirected to https://models", "in front"),
    (307, {}, b"", "redirected to nowhere", "in front"),
    (500, {}, b"", "the server failed", "kdeploy logs"),
    (418, {"x-envoy-upstream-service-time": "3"}, b"tea", "refused. the ingress says: tea", "kdeploy status"),
    (500, {}, b'{"kind": "Status", "message": "pods gone"}', "the server says: pods gone", "kdeploy logs"),
    (422, {}, b'{"detail": [{"loc": ["body"]}]}', '[{"loc": ["body"]}]', "kdeploy status"),
]


@pytest.mark.parametrize(("status", "headers", "body", "words", "hint"), RECORDED)
def test_a_refusal_is_told_by_who_said_it_why_and_what_to_do(status, headers, body, words, hint):
    error = explain(status, headers, body, ASKED)
    assert words in error.what
    assert hint in error.hint
    assert "\n" not in error.what


def test_without_a_host_header_the_sentence_says_so():
    error = explain(404, ENVOY, b"", Asked("digits", None, 1, 2))
    assert "a request without its own Host header" in error.what


def test_a_request_above_the_configured_limit_is_told_so():
    assert "more than the limit" in explain(413, {}, b"", Asked("digits", None, 3, 2)).what


def test_long_texts_are_cut():
    assert len(read_refusal(500, {}, b"x" * 10_000).text) == TEXT_MAX
    assert read_refusal(500, {}, b"a\n  b\tc").text == "a b c"


@given(
    st.integers(100, 599),
    st.dictionaries(st.sampled_from(["server", "location", "content-type"]), st.text(max_size=30)),
    st.binary(max_size=200)
    | st.dictionaries(
        st.sampled_from(["code", "type", "message", "error", "row", "detail"]),
        st.none() | st.integers() | st.text() | st.lists(st.text()) | st.dictionaries(st.text(), st.text()),
    ).map(lambda document: json.dumps(document).encode()),
)
def test_any_answer_gets_a_sentence_and_a_hint(status, headers, body):
    error = explain(status, headers, body, ASKED)
    assert error.what
    assert error.hint
    assert len(error.what) < 2 * TEXT_MAX


def test_deep_json_is_no_trap():
    assert explain(500, {}, b"[" * 100_000, ASKED).what
