"""Responses of the protocols, byte for byte."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.errors import PredictError
from deployer.predict import answers
from deployer.predict.answers import decode
from deployer.predict.codecs import Request
from deployer.predict.content import JSON
from tests.unit.predict.test_codecs import PROTOCOLS, VALUES, refused


def request(protocol: str, *, whole: bool = False) -> Request:
    return Request(protocol, "/", b"", JSON, whole)


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_predictions_of_v1_are_in_order(values):
    answer = json.dumps({"predictions": values}).encode()
    assert decode(request("v1", whole=True), answer) == values


@given(VALUES)
def test_other_json_is_the_prediction_of_one_row(value):
    if isinstance(value, dict):
        value.pop("predictions", None)
        value.pop("outputs", None)
    answer = json.dumps(value).encode()
    for protocol in PROTOCOLS:
        assert decode(request(protocol), answer) == value


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'a b {"predictions": ["c"]}', "a stream of parts, not JSON: 'a b "),
        (b'a {"model_name": "m", "outputs": []}', "a stream of parts"),
        (b"seven", "not JSON: 'seven'"),
        (b"", "not JSON: ''"),
        (b"[" * 100_000, "not JSON"),
        (b"<!DOCTYPE html><title>Log in</title>", "login page"),
        (b"\n <html><body>It works", "web page"),
    ],
)
def test_an_invalid_response_of_v1_is_refused(answer, words):
    assert words in refused(decode, request("v1"), answer)


@pytest.mark.parametrize(
    ("answer", "content_type", "value"),
    [
        (b'{\n  "class": 7\n}', "", {"class": 7}),
        (b"seven", "", "seven"),
        (b"", "text/plain", ""),
        ("sieben: ü".encode(), "text/plain", "sieben: ü"),
        (b"7.5", "application/json", 7.5),
        (b'<?xml version="1.0"?><alto/>', "", '<?xml version="1.0"?><alto/>'),
        (b'<?xml version="1.0"?><alto/>', "text/xml", '<?xml version="1.0"?><alto/>'),
        (b"<html><body>A report", "", "<html><body>A report"),
    ],
)
def test_a_plain_response_is_json_or_text(answer, content_type, value):
    assert decode(request("plain"), answer, content_type) == value


def test_a_plain_response_can_be_bytes():
    assert decode(request("plain"), b"\x89PNG\r\n", "image/png") == b"\x89PNG\r\n"
    assert decode(request("json"), b"\xff", "") == b"\xff"


def test_a_web_page_is_refused():
    assert "login page" in refused(decode, request("plain"), b"Please sign in", "text/html; charset=utf-8")


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_a_handler_can_answer_a_whole_request_itself(protocol):
    assert decode(request(protocol, whole=True), b'{"class": "seven"}') == {"class": "seven"}
    assert decode(request(protocol, whole=True), b"[1, 2, 3]") == [1, 2, 3]


@pytest.mark.parametrize("predictions", ["null", '{"a": 1}', '"a"', "3", "[1]", "[1, 2, 3]"])
def test_a_handler_that_reads_the_body_itself_can_answer_anything(predictions):
    answer = b'{"predictions": %b}' % predictions.encode()
    assert decode(request("v1", whole=True), answer) == json.loads(predictions)


def test_a_handler_can_answer_one_row_with_several_predictions():
    assert decode(request("v1"), b'{"predictions": [1, 2]}') == [1, 2]
    assert decode(request("v1"), b'{"predictions": []}') == []
    assert decode(request("v1"), b'{"explanations": [[0.1]]}') == [0.1]
    assert decode(request("v1", whole=True), b'{"predictions": [7]}') == [7]


def test_nan_is_a_prediction():
    assert math.isnan(decode(request("plain"), b"NaN"))


# Tensors


def tensor(shape, data, datatype="INT64", name="out"):
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def outputs(*tensors) -> bytes:
    return json.dumps({"model_name": "m", "outputs": tensors}).encode()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_flat_tensor_is_nested_by_its_shape(shape):
    data = list(range(math.prod(shape)))
    rows = decode(request("v2", whole=True), outputs(tensor(shape, data)))

    def flat(value):
        return [leaf for item in value for leaf in flat(item)] if isinstance(value, list) else [value]

    def measured(value):
        return [len(value), *measured(value[0])] if isinstance(value, list) else []

    assert flat(rows) == data
    assert measured(rows) == shape
    assert decode(request("v2", whole=True), outputs(tensor(shape, rows))) == rows


@pytest.mark.parametrize(
    ("whole", "tensors", "expected"),
    [
        (True, [tensor([2], ['{"a": 1}', "seven"], "BYTES")], [{"a": 1}, "seven"]),
        (False, [tensor([1], ["[1, 2"], "BYTES")], "[1, 2"),
        (False, [tensor([1], ["7"], "BYTES")], "7"),
        (False, [tensor([1], [7], "BYTES")], 7),
        (True, [tensor([1], [7])], [7]),
        (True, [tensor([2], [1, 2], name="a"), tensor([1], [3], name="b")], {"a": [1, 2], "b": [3]}),
        (False, [tensor([1], [1], name="a"), tensor([1], [3], name="b")], {"a": 1, "b": 3}),
        (False, [tensor([3], [1, 2, 3])], [1, 2, 3]),
        (False, [tensor([], [5])], 5),
        (False, [tensor([3], [1, 2, 3], name="a"), tensor([], [4], name="b")], {"a": [1, 2, 3], "b": 4}),
        (False, [tensor([10**12, 0], [])], []),
        (True, [tensor([0], [])], []),
    ],
)
def test_tensors_are_the_prediction(whole, tensors, expected):
    assert decode(request("v2", whole=whole), outputs(*tensors)) == expected


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([], "must be a list of tensors: Expected `array` of length >= 1"),
        ([3], "Expected `object`, got `int` - at `$[0]`"),
        ([{"shape": [1], "data": [1]}], "missing required field `name` - at `$[0]`"),
        ([tensor(None, [1])], "Expected `array`, got `null` - at `$[0].shape`"),
        ([tensor([-1], [1])], "Expected `int` >= 0 - at `$[0].shape[0]`"),
        ([tensor([True], [1])], "Expected `int`, got `bool` - at `$[0].shape[0]`"),
        ([tensor([1], "x")], "Expected `array`, got `str` - at `$[0].data`"),
        ([tensor([2], [1])], "shape [2] needs 2 values, data has 1"),
    ],
)
def test_invalid_tensors_are_refused(tensors, words):
    assert words in refused(decode, request("v2"), outputs(*tensors))


@given(st.binary(max_size=100) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_response_is_a_prediction_or_one_error(answer):
    for protocol in PROTOCOLS:
        for wrapped in (answer, b'{"predictions": ' + answer + b"}", b'{"outputs": [' + answer + b"]}"):
            try:
                decode(request(protocol), wrapped)
            except PredictError as error:
                assert error.hint


def test_the_module_is_pure():
    assert not {"os", "pathlib", "urllib3", "socket"} & set(vars(answers))


@pytest.mark.parametrize("protocol", ["plain", "v1", "v2"])
@pytest.mark.parametrize("depth", [101, 900, 100_000])
@pytest.mark.parametrize("around", ["[{}]", '{{"a":{}}}'])
def test_a_deeply_nested_response_is_refused(protocol, depth, around):
    opening, closing = around.replace("{{", "{").replace("}}", "}").split("{}")
    answer = (opening * depth + "1" + closing * depth).encode()
    try:
        value = decode(request(protocol), answer)
    except PredictError as error:
        assert error.hint
    else:  # JSON too deep for Python's parser is read as text
        assert (protocol, depth) == ("plain", 100_000)
        assert value == answer.decode()


def test_a_response_can_be_nested():
    nested = "[" * 90 + "1" + "]" * 90
    assert decode(request("plain"), nested.encode()) == json.loads(nested)
