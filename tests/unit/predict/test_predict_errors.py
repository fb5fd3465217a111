"""Errors for responses that are not a success, recorded from TorchServe, KServe, Istio and others."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.errors import InputRefusedError, NotReachedError, PredictError
from deployer.predict.predict_errors import TEXT_MAX, SentRequest, explain, read_refusal

SENT = SentRequest(model="digits", host="digits.default.example.com", size=900, limit=1000)


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
    # status, headers, body, a part of the message, a part of the hint
    (
        404,
        {},
        torchserve(404, "ModelNotFoundException", "Model not found: digits"),
        "model digits not found on this server (TorchServe: Model not found",
        "kdeploy models list",
    ),
    (
        404,
        {},
        torchserve(404, "ModelVersionNotFoundException", "Model version: 9 does not exist for model: digits"),
        "model digits not found",
        "kdeploy models list",
    ),
    (
        404,
        {},
        torchserve(404, "ResourceNotFoundException", "Requested resource is not found"),
        "does not have this path",
        "--kserve",
    ),
    (
        404,
        {},
        b'{"error":"Model with name digits does not exist."}',
        "model digits not found",
        "models list",
    ),
    (404, {"server": "uvicorn"}, b'{"detail":"Not Found"}', "does not have this path", "--kserve"),
    (
        404,
        ENVOY,
        b"",
        "no service for the Host header digits.default.example.com (from ingress istio-envoy)",
        "kdeploy status",
    ),
    (503, {}, FAILED, "the handler failed on this input (TorchServe: Prediction failed", "kdeploy logs"),
    (
        500,
        {},
        wrapped(FAILED, "503 Service Unavailable"),
        "HTTP 503: the handler failed on this input (TorchServe through KServe: Predic",
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
        "no worker is available",
        "models describe",
    ),
    (
        500,
        {},
        torchserve(500, "InternalServerException", "Worker died."),
        "the worker died",
        "raise `serving.response-timeout`; if the log has 'Message size exceed limit', raise `serving.max-",
    ),
    (
        500,
        {},
        b'{"error": "the answer has 12,967,202 bytes, serving.max-response-size is 6,553,500"}',
        "the response is too large (model server: the answer has 12,967,202 bytes",
        "Raise `serving.max-response-size`, then run `kdeploy rollout`",
    ),
    (
        500,
        {},
        b'{"error": "the batch failed, with no time to try this row by itself: ValueError: 7", "row": 0}',
        "another row of the same batch failed",
        "Send the request again",
    ),
    (
        507,
        {},
        torchserve(507, "InternalServerException", "Out of resources"),
        "no memory left",
        "serving.batch-size",
    ),
    (
        503,
        {},
        torchserve(503, "InternalServerException", "number of batch response mismatched, expect: 4, got: 1"),
        "one response per request",
        "serving.batch-size = 1",
    ),
    (
        503,
        {},
        torchserve(503, "InternalServerException", "Invalid model predict output"),
        "a list with one response per request",
        "serving.batch-size = 1",
    ),
    (400, {}, torchserve(400, "InvalidKeyException", "Token failed."), "a token", "disable_token"),
    (
        405,
        {},
        torchserve(405, "MethodNotAllowedException", "Requested method is not allowed"),
        "refused the request",
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
        "the model refused this input (handler: row 2: the body",
        "Compare",
    ),
    (
        500,
        {},
        b'{"error": "ValueError: cannot identify image file", "row": 0}',
        "the handler failed",
        "kdeploy logs",
    ),
    (413, {}, b"", "the request has 900 bytes, more than the server's own limit", "now 1000"),
    (
        413,
        {"server": "nginx"},
        NGINX,
        "(ingress nginx: 413 Request Entity Too Large)",
        "max-request-size",
    ),
    (503, ENVOY, b"no healthy upstream", "scales up from zero", "kdeploy status"),
    (
        503,
        {},
        b"upstream connect error or disconnect/reset before headers",
        "(ingress envoy: upstream",
        "kdeploy logs",
    ),
    (502, {"server": "Python/3.11 aiohttp/3.14.5"}, b"", "not ready", "kdeploy status"),
    (
        503,
        {"server": "Python/3.11 aiohttp/3.14.5", "retry-after": "1"},
        b'{"error": "digits-00002 ended while it was answering: no answer"}',
        "the service is not ready, or scales up from zero (ingress: digits-00002 ended",
        "kdeploy status",
    ),
    (
        404,
        {},
        b'{"error": "no InferenceService answers to Host \'x\'", "hosts": ["a.default.example.com"]}',
        "no service for the Host header digits.default.example.com (ingress: no Inf",
        "kdeploy status",
    ),
    (504, ENVOY, b"upstream request timeout", "time limit", "serving.response-timeout"),
    (408, {}, b"", "time limit", "serving.response-timeout"),
    (429, {}, b"", "too many concurrent requests", "max-replicas"),
    (403, ENVOY, b"RBAC: access denied", "AuthorizationPolicy", "--token @"),
    (403, {}, b"", "do not allow access", "--token @"),
    (
        401,
        {"server": "x"},
        b"Jwt is missing",
        "no valid credentials (server x: Jwt is missing)",
        "--token @",
    ),
    (
        302,
        {"location": "/dex/auth?client_id=kubeflow&state=abc"},
        b"",
        "the login page /dex/auth of",
        "--cookie authservice_session=@",
    ),
    (
        422,
        {},
        b'{"error": "no digit", "row": 3}',
        "the model refused this input (handler: row 3",
        "the input that the handler expects",
    ),
    (
        403,
        {},
        b'{"error": "denied", "row": 0}',
        "the model refused this input (handler: row 0: denied",
        "Comp",
    ),
    (403, {}, b'{"response": "denied"}', "the model refused this input (model: denied)", "Compare"),
    (
        400,
        {},
        b'{"error": "inputs[0] needs a unique name, a string"}',
        "the server refused the request, before the model (model server: inputs[0]",
        "--protocol",
    ),
    (504, ENVOY, b"", "time limit", "max-revision-timeout-seconds"),
    (301, {"location": "https://models.example.com/v1"}, b"", "redirected to https://models", "proxy"),
    (307, {}, b"", "redirected to no address", "proxy"),
    (500, {}, b"", "the server failed", "kdeploy logs"),
    (
        418,
        {"x-envoy-upstream-service-time": "3"},
        b"tea",
        "refused the request (ingress: tea)",
        "kdeploy status",
    ),
    (500, {}, b'{"kind": "Status", "message": "pods gone"}', "(server: pods gone)", "kdeploy logs"),
    (422, {}, b'{"detail": [{"loc": ["body"]}]}', '[{"loc": ["body"]}]', "kdeploy status"),
]


@pytest.mark.parametrize(("status", "headers", "body", "words", "hint"), RECORDED)
def test_each_error_has_its_sender_the_reason_and_a_hint(status, headers, body, words, hint):
    error = explain(status, headers, body, SENT)
    assert words in error.what
    assert hint in error.hint
    assert "\n" not in error.what


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b'{"error": "no digit", "row": 0}', InputRefusedError),
        (400, b'{"error": "\\"instances\\" must be a list"}', InputRefusedError),
        (403, b'{"response": "denied"}', InputRefusedError),
        (413, b"", InputRefusedError),
        (403, b"RBAC: access denied", NotReachedError),
        (404, b"", NotReachedError),
        (401, b"", NotReachedError),
        (302, b"", NotReachedError),
        (503, b"no healthy upstream", NotReachedError),
        (429, b"", NotReachedError),
        (500, b'{"error": "ValueError: 7", "row": 0}', PredictError),
        (507, b"", PredictError),
        (504, b"", PredictError),
        (500, b"", PredictError),
    ],
)
def test_the_kind_says_whether_the_model_refused_failed_or_was_not_reached(status, body, kind):
    assert type(explain(status, {}, body, SENT)) is kind


@pytest.mark.parametrize(
    ("text", "protocol", "content_type", "hint"),
    [
        (
            "TypeError: bytearray indices must be integers or slices, not str",
            "plain",
            "image/png",
            "--protocol json",
        ),
        (
            "AttributeError: 'bytearray' object has no attribute 'get'",
            "plain",
            "image/png",
            "--protocol json",
        ),
        ("UnicodeDecodeError: 'utf-8' codec can't decode byte 0x89", "plain", "image/png", "--protocol json"),
        (
            "JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
            "plain",
            "text/plain",
            "--protocol json",
        ),
        ("TypeError: a bytes-like object is required, not 'str'", "plain", "image/png", "--protocol json"),
        ("KeyError: 'data'", "plain", "image/png", "--protocol v1"),
        ("KeyError: 'instances'", "plain", "application/json", "--protocol v1"),
        ("KeyError: 'cat'", "plain", "image/png", "traceback"),
        ("TypeError: string indices must be integers, not 'str'", "v2", "application/json", "--protocol v1"),
        ("TypeError: string indices must be integers, not 'str'", "v1", "application/json", "traceback"),
    ],
)
def test_the_hint_names_the_protocol_that_a_handler_reads(text, protocol, content_type, hint):
    body = json.dumps({"error": text, "row": 0}).encode()
    sent = SentRequest("digits", None, 1, 2, protocol, content_type)
    error = explain(500, {}, body, sent)
    assert "the handler failed on this input" in error.what
    assert hint in error.hint


def test_the_error_mentions_a_missing_host_header():
    error = explain(404, ENVOY, b"", SentRequest("digits", None, 1, 2))
    assert "a request without its own Host header" in error.what


def test_the_error_mentions_the_configured_limit():
    assert "more than the limit" in explain(413, {}, b"", SentRequest("digits", None, 3, 2)).what


def test_long_texts_are_truncated():
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
def test_any_response_gets_a_message_and_a_hint(status, headers, body):
    error = explain(status, headers, body, SENT)
    assert error.what
    assert error.hint
    assert len(error.what) < 2 * TEXT_MAX


def test_deep_json_is_read_as_text():
    assert explain(500, {}, b"[" * 100_000, SENT).what
