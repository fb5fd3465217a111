"""A failed call is divided until each bad row has its own call, at a bounded cost, without side effects."""

import logging
import math
import sys
from types import SimpleNamespace

import pytest
from ts.utils.util import PredictionException

from tests.handler.torchserve_worker import Ask, Worker, ask_json, ask_raw, ask_v1, ask_v2, tensor


class Doubler:
    """Answers each number with its double, fails on `bad`, and records the rows per call."""

    def __init__(self, error=None, most=None):
        self.calls = []
        self.error = error or ValueError("bad")
        self.most = most

    def __call__(self, data, context):
        self.calls.append(len(data))
        values = [row["data"] for row in data]
        if "bad" in values or len(values) > (self.most or len(values)):
            raise self.error
        return [value * 2 for value in values]


@pytest.fixture(autouse=True)
def _quiet(caplog):
    """Log no tracebacks: the tests have hundreds of failing rows."""
    caplog.set_level(logging.CRITICAL, "kdeploy_handler")


# ---- number of calls


@pytest.mark.parametrize("total", [500, 2500])
@pytest.mark.parametrize("bad", [0, 1, 2, 5])
def test_a_few_bad_rows_cost_few_calls(total, bad):
    """The bad rows are evenly distributed from the first to the last."""
    places = {round(number * (total - 1) / max(bad - 1, 1)) for number in range(bad)}
    doubler = Doubler()
    values = ["bad" if number in places else number for number in range(total)]
    answers = Worker(doubler).predict(*[ask_v1(value) for value in values])
    for number, answer in enumerate(answers):
        if number in places:
            assert (answer.status, answer.json) == (500, {"error": "ValueError: bad", "row": 0})
        else:
            assert (answer.status, answer.json) == (200, {"predictions": [number * 2]})
    assert len(places) == bad
    assert len(doubler.calls) - 1 <= 2 * bad * math.ceil(math.log2(total))


@pytest.mark.parametrize("place", [0, 1, 1249, 1250, 2498, 2499])
def test_one_bad_row_among_2500_of_one_request_costs_at_most_30_more_calls(place):
    doubler = Doubler()
    values = ["bad" if number == place else number for number in range(2500)]
    many, neighbour = Worker(doubler).predict(ask_v1(*values), ask_v1(7))
    assert (many.status, many.json) == (500, {"error": "ValueError: bad", "row": place})
    assert neighbour.json == {"predictions": [14]}
    assert len(doubler.calls) - 1 <= 30


@pytest.mark.parametrize("total", [1, 2, 3, 7, 64, 100])
def test_all_bad_rows_cost_fewer_than_two_calls_per_row(total):
    doubler = Doubler()
    answers = Worker(doubler).predict(*[ask_v1("bad")] * total)
    assert {answer.status for answer in answers} == {500}
    assert len(doubler.calls) == 2 * total - 1


def test_the_other_rows_of_a_failed_request_get_no_more_calls():
    doubler = Doubler()
    values = [1, 2, "bad", *["bad"] * 997]
    answer, good = Worker(doubler).predict(ask_v1(*values), ask_v1(1))
    assert answer.json == {"error": "ValueError: bad", "row": 2}
    assert good.json == {"predictions": [2]}
    assert len(doubler.calls) <= 2 * math.ceil(math.log2(1001)) + 1


def test_a_batch_too_large_for_the_handler_is_answered_in_parts():
    doubler = Doubler(MemoryError(), most=3)
    answers = Worker(doubler).predict(*[ask_v1(number) for number in range(8)])
    assert [answer.json["predictions"] for answer in answers] == [[number * 2] for number in range(8)]
    assert doubler.calls == [8, 4, 2, 2, 4, 2, 2]


def test_division_finds_rows_that_the_handler_leaves_out():
    def entry(data, context):
        calls.append(len(data))
        return [row["data"] for row in data if row["data"] != "bad"]

    calls = []
    values = [*range(700), "bad", *range(300)]
    answers = Worker(entry).predict(*[ask_v1(value) for value in values])
    assert [answer.status for answer in answers] == [500 if value == "bad" else 200 for value in values]
    assert len(calls) - 1 <= 2 * 10


# ---- time limit


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def slow_worker(seconds, timeout, error=None):
    """A worker, its handler and a clock that every call advances."""
    clock, doubler = Clock(), Doubler(error)

    def entry(data, context):
        clock.now += seconds
        return doubler(data, context)

    return Worker(entry, clock=clock, response_timeout=timeout), doubler, clock


def test_division_ends_at_half_of_response_timeout():
    worker, doubler, clock = slow_worker(1, timeout=20)
    answers = worker.predict(*[ask_v1("bad")] * 64, ask_v1(1))
    assert len(doubler.calls) == 10
    assert clock.now == 1010
    assert {answer.status for answer in answers} == {500}
    assert answers[0].json == {"error": "ValueError: bad", "row": 0}
    message = "the batch failed, with no time to try this row by itself: ValueError: bad"
    assert answers[-1].json["error"] == message
    assert [answer.json["row"] for answer in answers] == [0] * 65


def test_answers_before_the_time_limit_are_kept():
    worker, _, _ = slow_worker(1, timeout=8)  # 8 rows, 4, 4, 2
    answers = worker.predict(*[ask_v1(number) for number in range(6)], ask_v1("bad"), ask_v1(7))
    assert [answer.status for answer in answers] == [200] * 6 + [500] * 2


def test_the_remaining_rows_get_the_status_of_the_batchs_error():
    worker, doubler, _ = slow_worker(5, timeout=8, error=PredictionException("no such digit", 422))
    for answer in worker.predict(ask_v1("bad"), ask_v1(1)):
        assert answer.status == 422
        assert answer.json["error"].endswith("by itself: no such digit")
    assert doubler.calls == [2]


def test_every_batch_has_its_own_time_limit():
    worker, doubler, _ = slow_worker(1, timeout=20)
    for _ in range(2):
        doubler.calls.clear()
        assert worker.predict(ask_v1(1), ask_v1("bad"))[0].status == 200
        assert doubler.calls == [2, 1, 1]


def test_calls_row_by_row_have_no_time_limit():
    """Each row gets exactly one call."""
    worker, doubler, _ = slow_worker(1, timeout=20)
    worker.adapter.batcher.one_row = True
    answer, bad, last = worker.predict(ask_v1(*range(13)), ask_v1("bad"), ask_v1(4))
    assert answer.json == {"predictions": [number * 2 for number in range(13)]}
    assert (bad.status, last.status) == (500, 200)
    assert doubler.calls == [1] * 15


# ---- changes of a failed call do not reach the next one


def counts(values):
    """Change a value in place, and return it."""
    values[0] += 1
    return values[0]


def first_key(row):
    return next(iter(row.values()))


NESTED = {
    "V1, an object": (ask_v1({"nested": {"values": [0]}}), lambda row: counts(row["nested"]["values"])),
    "V1, a list": (ask_v1([[0]]), lambda row: counts(row[0])),
    "V1, as body": (ask_v1({"values": [0]}), lambda row: counts(row["body"]["values"])),
    "V2": (ask_v2(tensor([0, 0], [1, 1, 2], "INT64")), lambda row: counts(row[0])),
    "V2, several inputs": (
        ask_v2(tensor([0], [1, 1], "INT64", "a"), tensor([0], [1, 1], "INT64", "b")),
        lambda row: counts(row["a"]),
    ),
    "other JSON": (ask_json({"nested": [[0]]}), lambda row: counts(row["body"]["nested"][0])),
    "bytes": (ask_raw(b"\x00\x00"), lambda row: counts(row["body"])),
    "a form field": (Ask((("field", "", b"\x00"), ("more", "", b"x"))), lambda row: counts(row["field"])),
}  # fmt: skip


@pytest.mark.parametrize(("ask", "change"), NESTED.values(), ids=NESTED)
@pytest.mark.parametrize("before", [0, 3])
def test_a_row_that_a_failed_call_changed_is_fresh_in_the_next_call(ask, change, before):
    """At any depth. Otherwise the answer would be 200 and wrong."""

    def entry(data, context):
        answers = [0 if row.get("data") in ("good", "bad") else change(row) for row in data]
        if any(row.get("data") == "bad" for row in data):
            raise ValueError
        return answers

    worker = Worker(entry, settings={"v2_rows": "first-dimension"})
    answer = worker.predict(*[ask_v1("good")] * before, ask, ask_v1("bad"))[before]
    assert answer.status == 200
    value = answer.json
    if "predictions" in ask.parts[0][2].decode(errors="replace") or isinstance(value, dict):
        value = value["predictions"][0] if "predictions" in value else value["outputs"][0]["data"][0]
    assert value == 1


def test_the_first_call_gets_the_rows_without_a_copy():
    seen = []
    worker = Worker(lambda data, context: seen.extend(data) or [0] * len(data))
    worker.code(ask_raw(b"a"), ask_raw(b"b"))  # creates a context with two requests
    bodies = [bytearray(b"\xff" * 1000), bytearray(b"\xfe" * 1000)]
    worker.adapter.answer([{"body": body} for body in bodies], worker.context)
    assert [row["body"] for row in seen[2:]] == bodies
    assert all(row["body"] is body for row, body in zip(seen[2:], bodies, strict=True))


@pytest.mark.parametrize("depth", range(800, 1001, 20))
def test_a_row_nested_too_deeply_for_a_copy_fails_no_other_request(depth):
    nested = ask_raw(b'{"instances": [' + b"[" * depth + b"]" * depth + b"]}")

    def entry(data, context):
        if any(row["data"] == "bad" for row in data):
            raise ValueError
        return ["fine"] * len(data)

    before, answer, bad = Worker(entry).predict(ask_v1(1), nested, ask_v1("bad"))
    assert before.json == {"predictions": ["fine"]}
    assert bad.status == 500
    assert answer.status in (200, 400)


def test_only_headers_and_statuses_of_a_failed_call_are_reset():
    def entry(data, context):
        for index, row in enumerate(data):
            context.set_response_header(index, f"saw-{row['data']}", str(len(data)))
            context.set_response_status(201, "Created", index)
            once.append(context.get_all_request_header(index).pop("once", None))
        if any(row["data"] == "bad" for row in data):
            raise ValueError
        return [row["data"] for row in data]

    once = []
    # The calls: all four rows; a and b; c and bad; c; bad.
    ab_c, bad = Worker(entry).predict(ask_v1("a", "b", "c", once="1"), ask_v1("bad", once="1"))
    assert ab_c.json == {"predictions": ["a", "b", "c"]}
    assert ab_c.status == 201
    kind = {"content-type": "application/json"}
    assert ab_c.headers == {"saw-a": "2", "saw-b": "2", "saw-c": "1", **kind}
    assert (bad.status, bad.headers) == (500, kind)
    assert once == ["1", None, None, "1", "1", None, None, "1", None, "1"]


def test_an_error_has_no_headers_of_earlier_rows():
    def entry(data, context):
        context.set_response_header(0, "content-encoding", "gzip")
        if data[-1]["data"] == "bad":
            raise ValueError
        return [0] * len(data)

    [answer] = Worker(entry).predict(ask_v1(1, "bad"))
    assert answer.headers == {"content-type": "application/json"}


# ---- errors that affect the whole worker


class OutOfMemoryError(RuntimeError):
    """Stands for torch's errors of several devices."""


@pytest.mark.parametrize("error", [MemoryError(), OutOfMemoryError("CUDA out of memory")])
def test_a_row_out_of_memory_gets_507(error):
    good, bad = Worker(Doubler(error)).predict(ask_v1(1), ask_v1("bad"))
    assert good.json == {"predictions": [2]}
    assert (bad.status, bad.json["row"]) == (507, 0)
    assert bad.json["error"].startswith(type(error).__name__)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("invalid literal for int() with base 10: 'CUDA'"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"),
        KeyError("OutOfMemoryError: CUDA"),
        PredictionException("CUDA error", 422),
    ],
    ids=repr,
)
def test_a_clients_text_in_an_error_does_not_fail_other_requests(error):
    doubler = Doubler(error)
    good, bad = Worker(doubler).predict(ask_v1(1), ask_v1("bad"))
    assert good.json == {"predictions": [2]}
    assert bad.status == getattr(error, "error_code", 500)
    assert "CUDA" in bad.json["error"]
    [single] = Worker(doubler).predict(ask_v1("bad"))
    assert single == bad


def test_an_exit_of_the_handler_fails_only_its_row():
    good, bad = Worker(Doubler(SystemExit(2))).predict(ask_v1(1), ask_v1("bad"))
    assert good.json == {"predictions": [2]}
    assert (bad.status, bad.json) == (500, {"error": "SystemExit: 2", "row": 0})


def gpu(monkeypatch, synchronize):
    """Replaces torch on a GPU, which the tests do not have."""
    cuda = SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, Tensor=type(None)))


def test_torchserve_gets_the_error_of_a_lost_gpu(monkeypatch):
    def synchronize(device):
        asked.append(device)
        raise RuntimeError("CUDA error: device-side assert triggered")

    asked = []
    gpu(monkeypatch, synchronize)
    doubler = Doubler(RuntimeError("CUDA error: device-side assert triggered"))
    assert Worker(doubler).code(ask_v1(1), ask_v1("bad")) == 507
    assert doubler.calls == [2]
    assert asked == [None]  # the device of this worker, from the context


def test_an_error_on_a_working_gpu_is_divided(monkeypatch):
    gpu(monkeypatch, lambda device: None)
    doubler = Doubler(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"))
    good, bad = Worker(doubler).predict(ask_v1(1), ask_v1("bad"))
    assert (good.status, bad.status) == (200, 500)


def test_an_error_without_a_text_fails_its_row():
    class SilentError(Exception):
        def __str__(self):
            raise ValueError

    good, bad = Worker(Doubler(SilentError())).predict(ask_v1(1), ask_v1("bad"))
    assert good.status == 200
    assert bad.json["error"].startswith("SilentError")


# ---- streams


def test_a_streamed_batch_is_not_called_again():
    def entry(data, context):
        calls.append(len(data))
        for index in range(len(data)):
            context.set_response_header(index, "ts_stream_next", "true")
        raise ValueError

    calls = []
    assert Worker(entry).code(ask_raw(b"a"), ask_raw(b"b")) == 503
    assert calls == [2]


def test_a_failed_stream_does_not_fail_the_other_requests():
    def entry(data, context):
        calls.append(len(data))
        if len(data) == 2:
            context.set_response_header(1, "ts_stream_next", "true")
            raise ValueError
        return ["answer"]

    calls = []
    answer, stream = Worker(entry).predict(ask_raw(b"a"), ask_raw(b"b"))
    assert (answer.status, answer.body, answer.headers) == (200, b"answer", {})
    assert stream.status == 500
    assert stream.headers["ts_stream_next"] == "false"  # so that TorchServe ends it
    assert calls == [2, 1]
