"""An answer that TorchServe would not accept fails one request, before TorchServe gets it."""

import json
import logging

import numpy as np
import pytest
import torch
from kdeploy_limits import DEFAULTS, read_limits
from kdeploy_streams import parse_message
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.protocol.otf_message_handler import create_predict_response

from tests.handler.torchserve_worker import Worker, ask_json, ask_raw, ask_v1, ask_v2, tensor

LIMIT = 1000
BIG = {
    "V1": (ask_v1(0), "x" * LIMIT),
    "V1, together": (ask_v1(*range(10)), "x" * 100),
    "V2": (ask_v2(tensor([0])), [0.5] * LIMIT),
    "other JSON": (ask_json({}), {"mask": [0.5] * LIMIT}),
    "text": (ask_raw(b""), "ü" * 501),
    "bytes": (ask_raw(b""), bytes(LIMIT + 1)),
    "a bytearray": (ask_raw(b""), bytearray(LIMIT + 1)),
    "a tensor": (ask_raw(b""), torch.zeros(LIMIT)),
    "an array": (ask_v1(0), np.zeros(LIMIT)),
}


def answers_of(ask, value, limit=LIMIT):
    """Return the answers of three requests. The handler answers the second with `value`."""

    def entry(data, context):
        return [1, *[value] * (len(data) - 2), 3]

    return Worker(entry, response_size=limit).predict(ask_v1(0), ask, ask_v1(0))


@pytest.mark.parametrize(("ask", "value"), BIG.values(), ids=BIG)
def test_only_the_request_with_the_large_answer_fails_and_the_error_has_the_size(ask, value):
    size = len(answers_of(ask, value, limit=10**6)[1].body)
    before, answer, after = answers_of(ask, value)
    assert before.json == {"predictions": [1]}
    assert after.json == {"predictions": [3]}
    assert (answer.status, answer.content_type) == (500, "application/json")
    message = f"the answer has {size:,} bytes, serving.max-response-size is 1,000"
    assert answer.json == {"error": message}
    assert size > LIMIT


@pytest.mark.parametrize("ask", [ask_raw(b""), ask_v1(0)])
def test_an_answer_of_exactly_the_limit_is_sent(ask):
    value = "x" * (LIMIT if ask.parts[0][2] == b"" else LIMIT - len('{"predictions": [""]}'))
    _, answer, _ = answers_of(ask, value)
    assert (answer.status, len(answer.body)) == (200, LIMIT)


def test_the_sum_of_a_batchs_answers_has_no_limit():
    worker = Worker(lambda data, context: ["x" * LIMIT] * 8, response_size=LIMIT)
    answers = worker.predict(*[ask_raw(b"")] * 8)
    assert [(answer.status, len(answer.body)) for answer in answers] == [(200, LIMIT)] * 8


def test_an_answer_for_stopping_criteria_has_the_same_limit():
    def entry(data, context):
        context.stopping_criteria = {0: lambda value: value["end"], 1: lambda value: True}
        return [{"end": True}, {"end": "x" * LIMIT}]

    done, big = Worker(entry, response_size=LIMIT).predict(ask_raw(b""), ask_raw(b""))
    assert (done.status, done.headers["ts_stream_next"]) == (200, "false")
    assert big.status == 500


def test_an_error_text_over_the_limit_is_replaced():
    def entry(data, context):
        raise ValueError("x" * LIMIT)

    for limit in (LIMIT, 20):
        [answer] = Worker(entry, response_size=limit).predict(ask_v1(0))
        assert answer.status == 500
        assert len(answer.body) <= limit
    [answer] = Worker(entry, response_size=LIMIT).predict(ask_v1(0))
    assert answer.json["row"] == 0
    assert "serving.max-response-size is 1,000" in answer.json["error"]


# ---- statuses and headers that would kill TorchServe's worker or its frontend


HEADERS = {
    "a line break": ("x-label", "a\nb"),
    "a carriage return": ("x-label", "a\rX-Other: b"),
    "a form feed": ("x-label", "\f"),
    "a null": ("x-label", "\0"),
    "a number": ("x-label", 5),
    "nothing": ("x-label", None),
    "a lone surrogate": ("x-label", "\ud800"),
    "endless": ("x-label", "x" * 7_000_000),
    "a space in the name": ("x label", "a"),
    "a colon in the name": ("x:", "a"),
    "an empty name": ("", "a"),
    "an umlaut in the name": ("x-ü", "a"),
    "a name of None": (None, "a"),
    "an umlaut in the content type": ("content-type", "text/ü"),
}
STATUSES = {
    "text": ("404", ""),
    "a fraction": (404.0, ""),
    "negative": (-1, ""),
    "zero": (0, ""),
    "an informational status": (100, ""),
    "four digits": (2000, ""),
    "a line break": (400, "a\nb"),
    "an umlaut": (400, "ü"),
    "a phrase that is a number": (400, 5),
}
CASES = {f"header: {key}": (value, None) for key, value in HEADERS.items()}
CASES |= {f"status: {key}": (None, value) for key, value in STATUSES.items()}


def set_on_second(header, status, value="mine"):
    """Return the answers of three raw requests. The handler sets a header or status for the second."""

    def entry(data, context):
        if header:
            context.set_response_header(1, *header)
        if status:
            context.set_response_status(*status, 1)
        return [value] * 3

    return Worker(entry).predict(ask_raw(b"a"), ask_raw(b"b"), ask_raw(b"c"))


@pytest.mark.parametrize(("header", "status"), CASES.values(), ids=CASES)
def test_only_the_request_with_an_invalid_status_or_header_fails(header, status):
    before, answer, after = set_on_second(header, status)
    assert (before.status, before.body, before.headers) == (200, b"mine", {})
    assert after == before
    assert answer.status == 500
    assert answer.json["error"].startswith("the handler set an invalid " + ("header" if header else "status"))
    assert answer.headers == {"content-type": "application/json"}
    assert len(answer.body) < 500


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (("x-label", "Größe 中 \t 'a'; b=\"c\""), None),
        (("content-type", "text/html; charset=utf-8"), None),
        (("X_1.2~", ""), None),
        (None, (404, "Not Found")),
        (None, (np.int64(201), None)),
        (None, (299, "")),
        (None, (None, None)),
    ],
)
def test_a_valid_status_and_header_are_sent(header, status):
    _, answer, _ = set_on_second(header, status)
    assert answer.body == b"mine"
    assert answer.status == ((status or [None])[0] or 200)
    assert dict([header] if header else []).items() <= answer.headers.items()


# ---- streams


class Recorder:
    def __init__(self):
        self.sent = []

    def sendall(self, message):
        self.sent.append(message)


def streamed(*pieces, limit=LIMIT):
    """Return the messages, the code of the batch and its answers for a handler that streams these pieces."""

    def entry(data, context):
        for piece in pieces:
            send_intermediate_predict_response(piece, context.request_ids, "ok", 200, context)
        return ["end"] * len(data)

    worker, recorder = Worker(entry, response_size=limit), Recorder()
    worker.service.set_cl_socket(recorder)
    return worker, recorder


def answer_sizes(message):
    return [len(answer.body) for answer in parse_message(message)[1]]


def test_the_sum_of_streamed_pieces_has_no_limit():
    worker, recorder = streamed(["x" * LIMIT, "y" * LIMIT], [b"", "ü" * 500])
    answers = worker.predict(ask_raw(b"a"), ask_raw(b"b"))
    assert [answer.body for answer in answers] == [b"end", b"end"]
    assert [answer_sizes(message) for message in recorder.sent] == [[LIMIT, LIMIT], [0, LIMIT]]


def test_a_streamed_piece_over_the_limit_fails_in_the_handler(caplog):
    worker, recorder = streamed(["a", "b"], ["c", "x" * (LIMIT + 1)])
    assert worker.code(ask_raw(b"a"), ask_raw(b"b")) == 503
    assert len(recorder.sent) == 1
    assert "a streamed piece of the answer has 1,001 bytes, serving.max-response-size is 1,000" in caplog.text


def test_sizes_are_read_from_torchserves_own_messages():
    values = ["", b"bytes", "ü", {"a": 1}, torch.zeros(3)]
    worker = Worker(lambda data, context: [])
    worker.code(*[ask_raw(b"")] * len(values))
    context = worker.context
    context.set_response_header(1, "x-label", "value")
    context.set_response_status(404, "Not Found", 2)
    message = create_predict_response(values, context.request_ids, "ok", 200, context)
    assert answer_sizes(message)[:4] == [0, 5, 2, len('{\n  "a": 1\n}')]
    assert len(answer_sizes(message)) == 5
    assert answer_sizes(create_predict_response(None, {}, "Out of resources", 507)) == []


# ---- the source of the limits


SNAPSHOT = json.dumps({"models": {"served-name": {"1.5": {"responseTimeout": 7}}}})


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        (f"max_response_size=1000\nmodel_snapshot={SNAPSHOT}\n", (1000, 7)),
        (f"# kept=no\n\n max_response_size = 2000 \nmodel_snapshot={SNAPSHOT}\n", (2000, 7)),
        ("max_response_size=3000", (3000, DEFAULTS.response_timeout)),
        (f"model_snapshot={SNAPSHOT}", (DEFAULTS.response_size, 7)),
        ('model_snapshot={"models": {"another": {"1": {"responseTimeout": 7}}}}', DEFAULTS),
        ("", DEFAULTS),
    ],
)
def test_limits_are_read_from_torchserves_config_file(tmp_path, monkeypatch, text, limits):
    (tmp_path / "config.properties").write_text(text)
    monkeypatch.setenv("TS_CONFIG_FILE", str(tmp_path / "config.properties"))
    assert read_limits(Worker(None).context) == limits


@pytest.mark.parametrize(
    "text",
    [
        None,
        b"max_response_size=many",
        b"model_snapshot={",
        b"model_snapshot=[]",
        b'model_snapshot={"models": {"served-name": [1]}}',
        b'model_snapshot={"models": {"served-name": {"1": {"responseTimeout": null}}}}',
        b"\xff",
    ],
)
def test_unreadable_limits_are_torchserves_defaults_and_logged(tmp_path, monkeypatch, caplog, text):
    caplog.set_level(logging.WARNING, "kdeploy_handler")
    path = tmp_path / "config.properties"
    if text is not None:
        path.write_bytes(text)
    monkeypatch.setenv("TS_CONFIG_FILE", str(path))
    assert read_limits(Worker(None).context) == (6_553_500, 120)
    assert str(path) in caplog.text


def test_without_the_variable_the_file_has_kserves_path(monkeypatch, caplog):
    monkeypatch.delenv("TS_CONFIG_FILE", raising=False)
    assert read_limits(Worker(None).context) == DEFAULTS
    assert "/mnt/models/config/config.properties" in caplog.text
