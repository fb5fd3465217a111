"""How the adapter reads a body, how a handler can read a row, and how an answer is written."""

import base64
import json
import sys

import numpy as np
import pytest
import torch

from tests.handler.torchserve_worker import Ask, Worker, ask_json, ask_raw, ask_v1, ask_v2, tensor

IMAGE = base64.b64encode(b"\xff\xd8 not really a picture").decode()


SLICES = {"v2_rows": "first-dimension"}


def rows_of(*asks, **settings):
    """Return the rows that a handler gets for these requests."""
    seen = []

    def entry(data, context):
        seen.extend(data)
        return [0] * len(data)

    Worker(entry, settings=settings).predict(*asks)
    return seen


def answer_to(ask, *values, **settings):
    """Return the answer to a request if the handler returns these values."""
    [answer] = Worker(lambda data, context: list(values), settings=settings).predict(ask)
    return answer


# ---- ways to read a row


READINGS = {
    "data": lambda row: row["data"],
    "get data": lambda row: row.get("data"),
    "body data": lambda row: row["body"]["data"],
    "vision": lambda row: row.get("data") or row.get("body"),
    "get body": lambda row: row.get("body").get("data"),
    "if in": lambda row: row["body"]["data"] if "body" in row else row["data"],
}


@pytest.mark.parametrize("read", READINGS.values(), ids=READINGS)
@pytest.mark.parametrize(
    "ask", [ask_v1({"data": IMAGE}), ask_v2(tensor([IMAGE], datatype="BYTES"))], ids=["v1", "v2"]
)
def test_every_way_to_read_an_image(ask, read):
    seen = []

    def entry(data, context):
        seen[:] = [read(row) for row in data]
        return [0] * len(data)

    worker = Worker(entry)
    for _ in range(2):
        [answer] = worker.predict(ask)
        assert answer.status == 200
        assert seen == [IMAGE]
        assert type(seen[0]) is str


@pytest.mark.parametrize(
    "instance", [[[1, 2], [3, 4]], [], "text", "", 3.5, 0, None, True, False, [0.0]], ids=repr
)
def test_a_bare_instance_is_its_own_data_and_body(instance):
    [row] = rows_of(ask_v1(instance))
    assert row["data"] == instance
    assert row["body"] == instance
    assert row.get("body") == instance
    assert (row.get("data") or row.get("body")) == instance
    assert row.get("other", "default") == "default"


def test_torchserves_base_handler_makes_a_tensor_of_a_list_of_lists():
    rows = rows_of(ask_v1([1, 2], [3, 4]), ask_v2(tensor([5, 6], [2])))
    assert torch.as_tensor(rows).tolist() == [[1, 2], [3, 4], [5, 6]]
    assert np.array(rows).shape == (3, 2)
    assert torch.FloatTensor(rows[0].get("data")).tolist() == [1, 2]
    assert rows[0][1] == 2
    assert isinstance(rows[0], list)


def test_iterating_over_an_object_does_not_show_its_body():
    [row] = rows_of(ask_v1({"age": 3, "income": 5}))
    assert row == {"age": 3, "income": 5}
    assert list(row) == ["age", "income"]
    assert "body" in row
    assert "data" not in row
    assert json.loads(json.dumps(row)) == {"age": 3, "income": 5}
    assert row["body"] == row
    assert row.get("data") is None
    with pytest.raises(KeyError, match="data"):
        row["data"]


def test_an_objects_own_body_has_precedence():
    [row] = rows_of(ask_v1({"body": "mine"}))
    assert row["body"] == row.get("body") == "mine"


@pytest.mark.parametrize(
    ("ask", "row"),
    [
        (ask_json({"data": IMAGE}), {"body": {"data": IMAGE}}),
        (ask_json([1, 2]), {"body": [1, 2]}),
        (ask_json({"inputs": "a text", "parameters": {}}), {"body": {"inputs": "a text", "parameters": {}}}),
        (ask_json({"inputs": ["a", "b"]}), {"body": {"inputs": ["a", "b"]}}),
        (ask_raw(b"\xff\xd8\x00{"), {"body": bytearray(b"\xff\xd8\x00{")}),
        (ask_raw(b'{"data": 1}'), {"body": bytearray(b'{"data": 1}')}),
        (ask_raw(b'"instances"'), {"body": bytearray(b'"instances"')}),
        (ask_raw(b"", name="data"), {"data": bytearray(b"")}),
        (ask_raw("grün".encode(), "text/plain"), {"body": "grün"}),
        (
            Ask((("image", "image/png", b"png"), ("top", "text/plain", b"3"))),
            {"image": bytearray(b"png"), "top": "3"},
        ),
        (Ask(()), {}),
    ],
    ids=lambda value: None if isinstance(value, Ask) else str(list(value)),
)
def test_any_other_body_is_passed_unchanged(ask, row):
    [seen] = rows_of(ask)
    assert seen == row
    assert {key: type(value) for key, value in seen.items()} == {
        key: type(value) for key, value in row.items()
    }


def test_a_body_is_not_copied():
    worker = Worker(None)
    worker.code(ask_raw(b"raw"))  # creates a context with one request
    body, seen = bytearray(b"\xff" * 1000), []
    worker.adapter.batcher.entry = lambda data, context: seen.extend(data) or [0]
    worker.adapter.answer([{"body": body}], worker.context)
    assert seen[0]["body"] is body


# ---- recognizing V1 and V2


@pytest.mark.parametrize("content_type", ["", "image/png", "text/plain", "application/json; charset=utf-8"])
@pytest.mark.parametrize("name", ["body", "data"])
def test_v1_is_recognized_without_a_json_content_type(content_type, name):
    body = b' \n{"parameters": 1, "instances": ["a", "b"]}'
    answer = answer_to(ask_raw(body, content_type, name), 1, 2)
    assert answer.json == {"predictions": [1, 2]}
    assert answer.content_type == "application/json"


def test_v2_is_recognized_without_a_json_content_type():
    answer = answer_to(ask_raw(json.dumps({"inputs": [tensor([1, 2])]}).encode()), [1, 2])
    assert answer.json["outputs"][0]["data"] == [1, 2]


def test_an_image_is_not_searched_for_json():
    body = b'\x89PNG{"instances": [1'
    assert answer_to(ask_raw(body), "seen").body == b"seen"


BAD = {
    "truncated": ask_raw(b'{"instances": [1, 2'),
    "not utf-8": ask_raw(b'{"instances": ["\xff"]}'),
    "nested too deeply": ask_raw(b'{"instances": ' + b"[" * 100_000),
    "an input that is not an object": ask_v2(tensor([1]), "x"),
    "only data": ask_v2({"data": [1]}),
    "two unknown dimensions": ask_v2(tensor([1], [-1, -1])),
    "an unknown dimension that does not fit": ask_v2(tensor([1, 2, 3], [-1, 2])),
    "an unknown dimension of no value": ask_v2(tensor([1], [-1, 0])),
    "a negative dimension": ask_v2(tensor([1], [-2])),
    "a negative number as shape": ask_v2(tensor([1], -2)),
    "a string for a number": ask_v2(tensor("1", [1])),
    "a long string for three": ask_v2(tensor("abc", [3], "BYTES")),
    "nested too deeply for any shape": ask_v2(tensor(json.loads("[" * 65 + "1" + "]" * 65), [1])),
    "no name": ask_v2({"shape": [1], "datatype": "FP32", "data": [1]}),
    "a repeated name": ask_v2(tensor([1]), tensor([1])),
    "no datatype": ask_v2({"name": "x", "shape": [1], "data": [1]}),
    "an unknown datatype": ask_v2(tensor([1], datatype="FLOAT")),
    "a datatype that is a list": ask_v2(tensor([1], datatype=["FP32"])),
    "no shape": ask_v2({"name": "x", "datatype": "FP32", "data": [1]}),
    "a boolean dimension": ask_v2(tensor([1], [True])),
    "a fractional dimension": ask_v2(tensor([1], [1.0])),
    "a huge number of empty slices": ask_v2(tensor([], [10**12, 0])),
    "astronomic": ask_v2(tensor([1], [10**300] * 60)),
    "too many dimensions": ask_v2(tensor([1], [1] * 65)),
    "too few values": ask_v2(tensor([1, 2, 3], [2, 2])),
    "too many values": ask_v2(tensor([1, 2, 3], [2])),
    "nested differently from its shape": ask_v2(tensor([[1, 2], [3, 4], [5, 6]], [2, 3])),
    "ragged": ask_v2(tensor([[1, 2], [3]], [2, 2])),
    "half nested": ask_v2(tensor([[1, 2], 3], [2, 2])),
    "no data": ask_v2({"name": "x", "shape": [1], "datatype": "FP32"}),
    "a string among numbers": ask_v2(tensor([1, "2"])),
    "null among numbers": ask_v2(tensor([1, None])),
    "a fraction among integers": ask_v2(tensor([1, 1.5], datatype="INT64")),
    "a number among booleans": ask_v2(tensor([True, 1], datatype="BOOL")),
    "a number among strings": ask_v2(tensor(["a", 1], datatype="BYTES")),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_only_the_invalid_request_gets_400(bad):
    good = ask_v1({"data": "a"})
    before, answer, after = Worker(lambda data, context: [len(data)] * len(data)).predict(good, bad, good)
    assert before.json == after.json == {"predictions": [2]}
    assert (before.status, after.status) == (200, 200)
    assert answer.status == 400
    assert answer.content_type == "application/json"
    assert list(answer.json) == ["error"]
    assert len(answer.json["error"]) > 20


@pytest.mark.parametrize("text", ["\ud800", '{"instances": ["\ud800"]}', '{"inputs": "\ud800"}'])
def test_a_lone_surrogate_in_a_body_fails_no_other_request(text):
    """JSON can escape a lone surrogate, which UTF-8 cannot encode."""
    before, answer, after = Worker(lambda data, context: [1] * len(data)).predict(
        ask_v1(0), ask_json(text), ask_v1(0)
    )
    assert before.json == after.json == {"predictions": [1]}
    assert answer.status == 200


def test_an_unexpected_error_while_reading_fails_only_its_request(monkeypatch):
    def read(body, binary, v2_rows):
        raise LookupError("surprise")

    worker = Worker(lambda data, context: [1] * len(data))
    monkeypatch.setattr(sys.modules["kdeploy_protocols"], "read_v2", read)
    good, answer = worker.predict(ask_v1(0), ask_v2(tensor([1])))
    assert good.json == {"predictions": [1]}
    assert (answer.status, list(answer.json)) == (500, ["error"])
    assert "LookupError('surprise')" in answer.json["error"]


def test_a_400_names_the_wrong_input():
    [answer] = Worker(lambda data, context: data).predict(ask_v2(tensor([1]), tensor([1, 2], [3], name="y")))
    assert answer.json == {"error": "inputs[1]: data must be the values of shape [3], flat or nested"}


def test_empty_instances_give_empty_predictions_without_a_call():
    def entry(data, context):
        raise AssertionError

    v1, v2 = Worker(entry).predict(ask_v1(), ask_v2(tensor([], [0, 3])))
    assert (v1.status, v1.json) == (200, {"predictions": []})
    assert v2.json["outputs"] == [{"name": "x", "shape": [0], "datatype": "BYTES", "data": []}]


# ---- V2's tensors


@pytest.mark.parametrize(
    ("sent", "rows"),
    [
        (tensor([1, 2, 3, 4, 5, 6], [2, 3]), [[1, 2, 3], [4, 5, 6]]),
        (tensor([[1, 2, 3], [4, 5, 6]], [2, 3]), [[1, 2, 3], [4, 5, 6]]),
        (tensor([1, 2, 3, 4], [2, 2, 1]), [[[1], [2]], [[3], [4]]]),
        (tensor([1, 2], [1, 2]), [[1, 2]]),
        (tensor([True, False], datatype="BOOL"), [True, False]),
        (tensor(["a", "b"], datatype="BYTES"), ["a", "b"]),
        (tensor(["a", "b"], [2, 1], datatype="BYTES"), ["a", "b"]),
        (tensor([["a"], ["b"]], [2, 1], datatype="BYTES"), ["a", "b"]),
        (tensor(["a", "b"], [1, 2], datatype="BYTES"), [["a", "b"]]),
    ],
)
def test_slices_along_the_first_dimension_are_rows(sent, rows):
    assert [row["data"] for row in rows_of(ask_v2(sent), **SLICES)] == rows


def test_several_inputs_become_rows_with_their_names():
    ask = ask_v2(tensor(["a", "b"], datatype="BYTES", name="word"), tensor([1, 2, 3, 4], [2, 2], name="box"))
    assert rows_of(ask, **SLICES) == [{"word": "a", "box": [1, 2]}, {"word": "b", "box": [3, 4]}]
    assert answer_to(ask, 7, 8, **SLICES).json["outputs"][0]["name"] == "output-0"


def test_slices_need_the_same_first_dimension():
    answer = answer_to(ask_v2(tensor([1, 2]), tensor([1], name="y")), **SLICES)
    assert answer.status == 400
    assert "the same first dimension" in answer.json["error"]


@pytest.mark.parametrize(
    ("values", "datatype", "shape", "data"),
    [
        ([1, 2], "INT64", [2], [1, 2]),
        ([1.5, 2], "FP64", [2], [1.5, 2]),
        ([[1.0, 2.0], [3.0, 4.0]], "FP64", [2, 2], [1.0, 2.0, 3.0, 4.0]),
        ([True, False], "BOOL", [2], [True, False]),
        ([True, 1], "BYTES", [2], ["true", "1"]),
        (["a", "b"], "BYTES", [2], ["a", "b"]),
        ([["a", "b"], ["c", "d"]], "BYTES", [2, 2], ["a", "b", "c", "d"]),
        ([{"class": 3}, "b"], "BYTES", [2], ['{"class": 3}', "b"]),
        ([[1], [1, 2]], "BYTES", [2], ["[1]", "[1, 2]"]),
        ([None, 1], "BYTES", [2], ["null", "1"]),
        ([2**63, 1], "BYTES", [2], [str(2**63), "1"]),
        ([[], []], "BYTES", [2], ["[]", "[]"]),
        ([b"\x00\xff", b""], "BYTES", [2], ["AP8=", ""]),
        ([float("nan"), 1.0], "FP64", [2], [None, 1.0]),
        (list(np.array([1, 2], dtype="int32")), "INT32", [2], [1, 2]),
        (list(np.ones((2, 1, 2), dtype="float32")), "FP32", [2, 1, 2], [1.0, 1.0, 1.0, 1.0]),
        (list(torch.tensor([[1, 2], [3, 4]])), "INT64", [2, 2], [1, 2, 3, 4]),
        ([(1, 2), (3, 4)], "INT64", [2, 2], [1, 2, 3, 4]),
    ],
)
def test_values_that_form_a_tensor_are_a_tensor_in_the_output(values, datatype, shape, data):
    answer = answer_to(ask_v2(tensor([0, 0]), id="mine"), *values, **SLICES)
    assert answer.content_type == "application/json"
    assert answer.json == {
        "model_name": "served-name",
        "model_version": "1.5",
        "id": "mine",
        "outputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": data}],
    }


def test_a_request_without_an_id_gets_none():
    assert "id" not in answer_to(ask_v2(tensor([0])), 1).json


# ---- answers


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (np.float32(0.5), 0.5),
        (np.array([[1, 2]]), [[1, 2]]),
        (torch.tensor([1.5], requires_grad=True), [1.5]),
        ({"scores": torch.tensor([1, 2])}, {"scores": [1, 2]}),
        (b"\x00\xff", "AP8="),
        ([float("nan"), float("-inf"), 1.5], [None, None, 1.5]),
        (np.array([np.nan, 1.0]), [None, 1.0]),
        ("grün", "grün"),
        (None, None),
    ],
    ids=str,
)
def test_v1_answers_are_standard_json(value, written):
    assert answer_to(ask_v1(1), value).json == {"predictions": [written]}


CIRCLE = []
CIRCLE.append(CIRCLE)
UNWRITABLE = {"object": object(), "set": {1, 2}, "key": {(1, 2): 3}, "circle": CIRCLE}
ONE_ROW = {"v1": ask_v1(0), "v2": ask_v2(tensor([0])), "own": ask_json({"data": 0})}


@pytest.mark.parametrize("value", UNWRITABLE.values(), ids=UNWRITABLE)
@pytest.mark.parametrize("ask", ONE_ROW.values(), ids=ONE_ROW)
def test_only_the_request_with_an_unwritable_answer_fails(ask, value):
    before, answer, after = Worker(lambda data, context: [1, value, 3]).predict(ask_v1(0), ask, ask_v1(0))
    assert answer.status == 500
    assert "cannot write the handler's answer as JSON" in answer.json["error"]
    assert before.json == {"predictions": [1]}
    assert after.json == {"predictions": [3]}


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ({"class": 3}, json.dumps({"class": 3}, indent=2).encode()),
        ([1, 2], b"[\n  1,\n  2\n]"),
        ("text", b"text"),
        (b"\x00", b"\x00"),
        (bytearray(b"\x01"), b"\x01"),
        (float("nan"), b"NaN"),
    ],
)
def test_the_answer_to_any_other_body_is_as_torchserve_writes_it(value, body):
    answer = answer_to(ask_raw(b"raw"), value)
    assert (answer.status, answer.body, answer.content_type) == (200, body, "")


def test_a_tensor_is_sent_as_torchserve_sends_it():
    answer = answer_to(ask_raw(b"raw"), torch.tensor([1, 2]))
    assert answer.body.startswith(b"PK")


def test_only_the_request_with_an_unencodable_answer_fails():
    """It would kill TorchServe's worker."""
    text, answer = Worker(lambda data, context: ["good", "\ud800"]).predict(ask_raw(b"a"), ask_raw(b"b"))
    assert text.body == b"good"
    assert answer.status == 500
