"""The rows of a batch become few calls of the handler, and an error fails only its own request."""

import asyncio
import base64
import logging
import time

import pytest
from ts.context import Context
from ts.utils.util import PredictionException

from tests.handler.torchserve_worker import Worker, ask_json, ask_raw, ask_v1, ask_v2, tensor


class Echo:
    """Answers each row with itself, records the rows per call, and fails on `poison`."""

    def __init__(self, error=None):
        self.calls = []
        self.error = error or ValueError("poisoned")

    def __call__(self, data, context):
        self.calls.append(len(data))
        values = [row.get("data") or row.get("body") for row in data]
        values = [value.decode() if isinstance(value, bytearray) else value for value in values]
        if "poison" in values:
            raise self.error
        return values


class OneRow:
    """A handler for one row per call."""

    def __init__(self):
        self.initialized = False
        self.calls = 0

    def initialize(self, context):
        self.manifest = context.manifest
        self.properties = context.system_properties
        self.initialized = True

    def preprocess(self, data):
        return base64.b64decode(data[0]["body"]["data"])

    def inference(self, picture):
        return {"bytes": len(picture), "model": self.manifest["model"]["modelName"]}

    def postprocess(self, result):
        return [result]

    def handle(self, data, context):
        self.calls += 1
        start = time.time()
        result = self.postprocess(self.inference(self.preprocess(data)))
        context.metrics.add_time("HandlerTime", (time.time() - start) * 1000, None, "ms")
        assert self.properties.get("model_dir") == "/no-such-folder"
        return result


def picture(size):
    return {"data": base64.b64encode(bytes(size)).decode()}


# ---- one call for all rows


def test_one_call_gets_the_rows_of_every_protocol():
    echo = Echo()
    answers = Worker(echo).predict(
        ask_v1("a", "b"),
        ask_raw(b"c"),
        ask_v2(tensor(["d", "e"], datatype="BYTES")),
        ask_json({"data": "f"}),
        ask_v1({"data": "g"}),
        ask_raw(b"h", name="data"),
    )
    assert echo.calls == [8]
    assert answers[0].json == {"predictions": ["a", "b"]}
    assert answers[1].body == b"c"
    assert answers[2].json["outputs"][0]["data"] == ["d", "e"]
    assert answers[3].json == {"data": "f"}
    assert answers[4].json == {"predictions": ["g"]}
    assert answers[5].body == b"h"


@pytest.mark.parametrize("header", ["explain", "describe"])
def test_a_request_that_switches_the_whole_handler_gets_its_own_call(header):
    """TorchServe's handlers read these headers only at row 0, and apply them to the whole call."""
    seen = []

    def entry(data, context):
        seen.append((len(data), context.get_request_header(0, header)))
        return list(range(len(data)))

    switched = ask_v1("a", "b", **{header: "True"})
    first, answer, last = Worker(entry).predict(ask_v1("c"), switched, ask_v1("d"))
    assert sorted(seen, key=str) == [(1, "True"), (1, "True"), (2, None)]
    assert (first.json, last.json) == ({"predictions": [0]}, {"predictions": [1]})
    key = "explanations" if header == "explain" else "predictions"
    assert answer.json == {key: [0, 0]}


# ---- handlers that take one row per call


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "kdeploy_handler")
    return caplog


def test_a_one_row_handler_answers_a_mixed_batch(warnings):
    classic = OneRow()
    worker = Worker(classic.handle)
    classic.initialize(worker.context)
    batch = [
        ask_v1(picture(3)),
        ask_json(picture(5)),
        ask_v1(picture(7), picture(9)),
        ask_v2(tensor([picture(11)["data"]], datatype="BYTES")),
    ]
    for more in (1 + 5 + 1, 1 + 5, 5):  # V2's row was read in a second way, then batching is off
        classic.calls = 0
        answers = [answer.json for answer in worker.predict(*batch)]
        assert classic.calls == more
        assert answers[0] == {"predictions": [{"bytes": 3, "model": "archived-name"}]}
        assert answers[1] == {"bytes": 5, "model": "archived-name"}
        assert [prediction["bytes"] for prediction in answers[2]["predictions"]] == [7, 9]
        assert answers[3]["outputs"][0]["data"] == ['{"bytes": 11, "model": "archived-name"}']
    messages = [record.message for record in warnings.records]
    assert messages[-1].startswith("The handler takes one row per call, so batching is off")
    assert sum("a list of 1 for 5 row(s)" in message for message in messages) == 2


def test_leaving_out_a_bad_row_does_not_turn_batching_off(warnings):
    def entry(data, context):
        calls.append(len(data))
        return [row["data"] for row in data if row["data"] != "bad"]

    calls = []
    worker = Worker(entry)
    for _ in range(2):
        good, bad = worker.predict(ask_v1("a"), ask_v1("bad"))
        assert good.json == {"predictions": ["a"]}
        assert bad.status == 500
        assert bad.json["error"] == "the handler returned a list of 0 for 1 row(s), not a list of 1"
    worker.predict(ask_v1("a"), ask_v1("b"))
    assert calls == [2, 1, 1, 2, 1, 1, 2]
    assert len([record for record in warnings.records if "A batch failed" in record.message]) == 1


@pytest.mark.parametrize("value", [{"class": 1}, "text", None, (1, 2), []], ids=str)
def test_a_wrong_number_of_answers_for_one_row_is_an_error(value):
    answers = Worker(lambda data, context: value).predict(ask_v1("a"), ask_raw(b"b"))
    for answer in answers:
        assert answer.status == 500
        assert answer.json["row"] == 0
        assert "for 1 row(s), not a list of 1" in answer.json["error"]


@pytest.mark.parametrize(
    "ask", [ask_raw(b"b"), ask_v1("a", "b"), ask_v2(tensor([1]))], ids=["own", "v1", "v2"]
)
def test_three_answers_are_an_error(ask):
    [answer] = Worker(lambda data, context: [1, 2, 3]).predict(ask)
    assert answer.status == 500
    assert "returned a list of 3" in answer.json["error"]


def test_the_only_instance_of_a_request_can_have_several_predictions():
    """With KServe's envelope, the list that a handler returns is the predictions."""

    def entry(data, context):
        return [number for row in data for number in range(row["x"])]

    for _ in range(2):
        answers = Worker(entry).predict(ask_v1({"x": 2}), ask_v1({"x": 3}), ask_v1({"x": 3}, explain="True"))
        assert [answer.json for answer in answers] == [
            {"predictions": [0, 1]},
            {"predictions": [0, 1, 2]},
            {"explanations": [0, 1, 2]},
        ]


def test_a_second_call_gets_fresh_rows_if_the_handler_changes_them():
    def entry(data, context):
        row = data[0]["body"]
        row["data"] = base64.b64decode(row["data"]).decode()
        return [row["data"]]

    worker = Worker(entry)
    batch = [{"data": base64.b64encode(letter).decode()} for letter in (b"aaaaa", b"bbbbb")]
    v1, own = worker.predict(ask_v1(batch[0]), ask_json(batch[1]))
    assert v1.json == {"predictions": ["aaaaa"]}
    own, v1 = Worker(entry).predict(ask_json(batch[1]), ask_v1(batch[0]))
    assert own.body == b"bbbbb"


# ---- failures


def test_only_the_request_with_the_bad_row_fails(warnings):
    echo = Echo()
    worker = Worker(echo)
    batch = [ask_v1("a"), ask_v1("b", "poison", "c"), ask_raw(b"poison"), ask_json({"data": "d"})]
    for _ in range(2):
        a, poisoned, raw, d = worker.predict(*batch)
        assert (a.json, d.json) == ({"predictions": ["a"]}, {"data": "d"})
        assert (poisoned.status, poisoned.json) == (500, {"error": "ValueError: poisoned", "row": 1})
        assert (raw.status, raw.json) == (500, {"error": "ValueError: poisoned", "row": 0})
    assert echo.calls == [6, 3, 2, 1, 2, 1, 1] * 2  # "c" gets no call: its request has failed
    logged = [record for record in warnings.records if "A batch failed" in record.message]
    assert len(logged) == 1
    assert logged[0].exc_info
    assert sum("Row 1 of a request failed" in record.message for record in warnings.records) == 2


def test_a_single_row_gets_no_second_call():
    echo = Echo()
    [answer] = Worker(echo).predict(ask_v1("poison"))
    assert answer.status == 500
    assert echo.calls == [1]


@pytest.mark.parametrize(
    ("code", "status"), [(422, 422), (503, 503), (200, 500), (None, 500), ("422", 500), (404.0, 500)]
)
def test_a_prediction_exception_keeps_its_code_and_message(code, status):
    echo = Echo(PredictionException("no face in the picture", code))
    good, bad = Worker(echo).predict(ask_v1("a"), ask_v1("poison"))
    assert good.json == {"predictions": ["a"]}
    assert (bad.status, bad.json) == (status, {"error": "no face in the picture", "row": 0})


def test_statuses_and_headers_of_a_failed_call_are_reset():
    def entry(data, context):
        for index, row in enumerate(data):
            context.set_response_header(index, "rows", str(len(data)))
            if len(data) > 1:
                context.set_response_header(index, "batched", "yes")
            if len(data) > 1 or row["data"] == "teapot":
                context.set_response_status(418, "teapot", index)
        return [1]

    plain, teapot = Worker(entry).predict(ask_v1("plain"), ask_v1("teapot"))
    assert plain.status == 200
    assert teapot.status == 418
    assert plain.headers == teapot.headers == {"rows": "1", "content-type": "application/json"}


# ---- the context


def test_the_context_has_the_request_of_each_row():
    def entry(data, context):
        for index, _ in enumerate(data):
            context.set_response_header(index, "row", str(index))
            context.set_response_status(201, "Created", index)
        seen.append([context.get_request_id(index) for index, _ in enumerate(data)])
        seen.append([context.get_all_request_header(index).get("who") for index, _ in enumerate(data)])
        return [context.get_request_header(index, "who") for index, _ in enumerate(data)]

    seen = []
    answers = Worker(entry).predict(
        ask_v1("1", "2", who="ann"), ask_v1(who="eve"), ask_v1("3", who="bob"), ask_json({}, who="cyd")
    )
    assert [answer.json for answer in answers[:3]] == [
        {"predictions": ["ann", "ann"]},
        {"predictions": []},
        {"predictions": ["bob"]},
    ]
    assert answers[3].body == b"cyd"
    assert seen == [["request-0", "request-0", "request-2", "request-3"], ["ann", "ann", "bob", "cyd"]]
    assert [answer.headers.get("row") for answer in answers] == ["1", None, "2", "3"]
    assert [answer.status for answer in answers] == [201, 200, 201, 201]


@pytest.mark.parametrize("fails", [False, True])
def test_the_context_is_torchserves_and_is_restored_after_the_call(fails):
    def entry(data, context):
        assert isinstance(context, Context)
        assert context is worker.context
        context.calls = getattr(context, "calls", 0) + 1
        context.metrics.add_time("HandlerTime", 1.0, None, "ms")
        if fails:
            raise ValueError
        return ["x"] * len(data)

    worker = Worker(entry)
    worker.predict(ask_v1("a", "b", "c"))
    assert worker.context.calls == (3 if fails else 1)
    assert worker.context.request_ids == {0: "request-0"}
    assert len(worker.context.request_processor) == 1


def test_stopping_criteria_get_the_handlers_value():
    """TorchServe's continuous batching passes each answer to them."""

    def entry(data, context):
        context.stopping_criteria = {0: lambda value: value["end"], 1: lambda value: value["end"]}
        return [{"end": True}, {"end": False}]

    done, more = Worker(entry).predict(ask_raw(b"a"), ask_raw(b"b"))
    assert done.headers["ts_stream_next"] == "false"
    assert more.headers["ts_stream_next"] == "true"


def test_torchserves_asynchronous_worker_awaits_a_coroutine_handler():
    async def entry(data, context):
        return [len(data), context]

    assert asyncio.run(Worker(entry).adapter.answer([{"body": 1}], "context")) == [1, "context"]
