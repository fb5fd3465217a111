"""Requests and responses of the three protocols, byte for byte."""

from __future__ import annotations

import base64
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.errors import PredictError
from deployer.predict import codecs
from deployer.predict.codecs import JSON, Request, decode, encode, request_path, request_size

PROTOCOLS = ("plain", "v1", "v2")
FILES = st.binary(max_size=200)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def request(protocol: str, rows: int = 1) -> Request:
    return Request(protocol, "/", b"", JSON, rows)


def refused(call, *arguments) -> str:
    with pytest.raises(PredictError) as caught:
        call(*arguments)
    assert caught.value.hint
    return caught.value.what


# Requests


@pytest.mark.parametrize(
    ("protocol", "path"),
    [
        ("plain", "/predictions/digits"),
        ("v1", "/v1/models/digits:predict"),
        ("v2", "/v2/models/digits/infer"),
    ],
)
def test_each_protocol_has_its_path(protocol, path):
    assert request_path(protocol, "digits") == path


def test_each_protocol_has_its_document():
    file = b"two!"
    assert json.loads(encode("v1", "m", file).body) == {"instances": [{"data": "dHdvIQ=="}]}
    assert json.loads(encode("v2", "m", file).body) == {
        "inputs": [{"name": "input-0", "shape": [1], "datatype": "BYTES", "data": ["dHdvIQ=="]}]
    }
    plain = encode("plain", "m", b"\xff\xd8", "image/jpeg")
    assert (plain.body, plain.content_type, plain.rows, plain.whole) == (b"\xff\xd8", "image/jpeg", 1, False)


@given(FILES)
def test_v1_and_v2_contain_the_bytes_of_the_file(data):
    [v1] = json.loads(encode("v1", "m", data).body)["instances"]
    [v2] = json.loads(encode("v2", "m", data).body)["inputs"]
    assert base64.b64decode(v1["data"], validate=True) == data
    assert [base64.b64decode(row, validate=True) for row in v2["data"]] == [data]


@given(FILES, st.sampled_from(PROTOCOLS))
def test_the_size_of_a_request_is_known_before_it_is_encoded(data, protocol):
    made = encode(protocol, "m", data)
    assert request_size(protocol, len(data)) == len(made.body)
    assert made.rows == 1


# JSON files


@given(VALUES)
def test_a_json_file_is_one_instance_of_v1_and_unchanged_on_the_plain_path(value):
    if isinstance(value, dict):
        value.pop("instances", None)
    file = json.dumps(value).encode()
    assert encode("plain", "m", file, JSON).body == file
    made = encode("v1", "m", file, JSON)
    assert json.loads(made.body) == {"instances": [value]}
    assert (made.rows, made.whole) == (1, False)


@given(st.lists(VALUES, max_size=4))
def test_a_json_file_that_is_a_v1_request_is_sent_unchanged(values):
    file = json.dumps({"instances": values}).encode()
    made = encode("v1", "m", file, JSON)
    assert made == Request("v1", "/v1/models/m:predict", file, JSON, len(values), whole=True)


def test_a_json_file_that_is_a_v2_request_is_sent_unchanged():
    tensor = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}
    file = json.dumps({"inputs": [tensor]}).encode()
    made = encode("v2", "m", file, JSON)
    assert (made.body, made.rows, made.whole) == (file, 2, True)


def test_other_json_is_sent_as_bytes_in_v2():
    file = b'{"a": 1}'
    [tensor] = json.loads(encode("v2", "m", file, JSON).body)["inputs"]
    assert base64.b64decode(tensor["data"][0]) == file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_is_sent_in_utf_8(encoding):
    file = '{"a": "ü"}'.encode(encoding)
    assert encode("plain", "m", file, JSON).body == '{"a": "ü"}'.encode()
    assert json.loads(encode("v1", "m", file, JSON).body) == {"instances": [{"a": "ü"}]}


@pytest.mark.parametrize("data", [b"{", b"", b"\xff\xfe\xff", b"[" * 100_000, b'"\xff"', b"1" * 5000])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_invalid_json_file_is_refused(data, protocol):
    assert "invalid JSON" in refused(encode, protocol, "m", data, JSON)


def test_a_malformed_request_is_refused_before_it_is_sent():
    assert '"instances" must be a list' in refused(encode, "v1", "m", b'{"instances": {}}', JSON)
    for inputs in (b"3", b"[]", b"[3]", b"[{}]", b'[{"shape": []}]', b'[{"shape": ["x"]}]'):
        file = b'{"inputs": ' + inputs + b"}"
        assert '"inputs" must be' in refused(encode, "v2", "m", file, JSON)


# Responses


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_predictions_of_v1_are_in_order(values):
    answer = json.dumps({"predictions": values}).encode()
    assert decode(request("v1", len(values)), answer) == values


@given(VALUES)
def test_other_json_is_the_prediction_of_one_row(value):
    if isinstance(value, dict):
        value.pop("predictions", None)
        value.pop("outputs", None)
    answer = json.dumps(value).encode()
    assert decode(request("v1"), answer) == [value]
    assert decode(request("v2"), answer) == [value]
    assert decode(request("plain"), answer) == [value]


@pytest.mark.parametrize(
    ("answer", "rows", "words"),
    [
        (b'{"predictions": [1]}', 2, "1 entries for 2 rows"),
        (b'{"predictions": [1, 2]}', 1, "2 entries for 1 rows"),
        (b'{"predictions": null}', 1, "must be a list, not NoneType"),
        (b'{"predictions": {"a": 1}}', 1, "must be a list, not dict"),
        (b'{"predictions": "a"}', 1, "must be a list, not str"),
        (b'{"predictions": 3}', 1, "must be a list, not int"),
        (b'{"class": "seven"}', 2, 'has no "predictions"'),
        (b"[1, 2]", 2, 'has no "predictions"'),
        (b"seven", 1, "not JSON: 'seven'"),
        (b"", 1, "not JSON: ''"),
        (b"[" * 100_000, 1, "not JSON"),
        (b"<!DOCTYPE html><title>Log in</title>", 1, "login page"),
        (b"\n <html><body>It works", 1, "web page"),
    ],
)
def test_an_invalid_response_of_v1_is_refused(answer, rows, words):
    assert words in refused(decode, request("v1", rows), answer)


@pytest.mark.parametrize(
    ("answer", "content_type", "value"),
    [
        (b'{\n  "class": 7\n}', "", {"class": 7}),
        (b"seven", "", "seven"),
        (b"", "text/plain", ""),
        ("sieben: ü".encode(), "text/plain", "sieben: ü"),
        (b"7.5", "application/json", 7.5),
    ],
)
def test_a_plain_response_is_json_or_text(answer, content_type, value):
    assert decode(request("plain"), answer, content_type) == [value]


def test_a_response_that_is_neither_json_nor_text_is_refused():
    assert "4 bytes that are neither" in refused(decode, request("plain"), b"\x89PNG", "image/png")
    assert "login page" in refused(decode, request("plain"), b"Please sign in", "text/html; charset=utf-8")


def test_nan_is_a_prediction():
    [value] = decode(request("plain"), b"NaN")
    assert math.isnan(value)


# Tensors


def tensor(shape, data, datatype="INT64", name="out"):
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def outputs(*tensors) -> bytes:
    return json.dumps({"model_name": "m", "outputs": tensors}).encode()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_flat_tensor_is_nested_by_its_shape(shape):
    data = list(range(math.prod(shape)))
    rows = decode(request("v2", shape[0]), outputs(tensor(shape, data)))

    def flat(value):
        return [leaf for item in value for leaf in flat(item)] if isinstance(value, list) else [value]

    def measured(value):
        return [len(value), *measured(value[0])] if isinstance(value, list) else []

    assert flat(rows) == data
    assert measured(rows) == shape
    assert decode(request("v2", shape[0]), outputs(tensor(shape, rows))) == rows


@pytest.mark.parametrize(
    ("rows", "tensors", "expected"),
    [
        (2, [tensor([2], ['{"a": 1}', "seven"], "BYTES")], [{"a": 1}, "seven"]),
        (1, [tensor([1], ["[1, 2"], "BYTES")], ["[1, 2"]),
        (1, [tensor([1], ["7"], "BYTES")], ["7"]),
        (1, [tensor([1], [7], "BYTES")], [7]),
        (
            2,
            [tensor([2], [1, 2], name="a"), tensor([2], [3, 4], name="b")],
            [{"a": 1, "b": 3}, {"a": 2, "b": 4}],
        ),
        (1, [tensor([3], [1, 2, 3])], [[1, 2, 3]]),
        (1, [tensor([], [5])], [5]),
        (1, [tensor([3], [1, 2, 3], name="a"), tensor([], [4], name="b")], [{"a": [1, 2, 3], "b": 4}]),
        (1, [tensor([10**12, 0], [])], [[]]),
        (0, [tensor([0], [])], []),
    ],
)
def test_tensors_are_split_into_rows(rows, tensors, expected):
    assert decode(request("v2", rows), outputs(*tensors)) == expected


@pytest.mark.parametrize(
    ("rows", "tensors", "words"),
    [
        (1, [], "must be a list of tensors: Expected `array` of length >= 1"),
        (1, [3], "Expected `object`, got `int` - at `$[0]`"),
        (1, [{"shape": [1], "data": [1]}], "missing required field `name` - at `$[0]`"),
        (1, [tensor(None, [1])], "Expected `array`, got `null` - at `$[0].shape`"),
        (1, [tensor([-1], [1])], "Expected `int` >= 0 - at `$[0].shape[0]`"),
        (1, [tensor([True], [1])], "Expected `int`, got `bool` - at `$[0].shape[0]`"),
        (1, [tensor([1], "x")], "Expected `array`, got `str` - at `$[0].data`"),
        (1, [tensor([2], [1])], "shape [2] needs 2 values, data has 1"),
        (2, [tensor([3], [1, 2, 3])], "[3] rows, the request has 2"),
        (2, [tensor([], [1])], "[1] rows, the request has 2"),
    ],
)
def test_invalid_tensors_are_refused(rows, tensors, words):
    assert words in refused(decode, request("v2", rows), outputs(*tensors))


@given(st.binary(max_size=100) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_response_is_a_prediction_or_one_error(answer):
    for protocol in PROTOCOLS:
        for wrapped in (answer, b'{"predictions": ' + answer + b"}", b'{"outputs": [' + answer + b"]}"):
            try:
                assert len(decode(request(protocol), wrapped)) == 1
            except PredictError as error:
                assert error.hint


def test_the_module_is_pure():
    assert not {"os", "pathlib", "urllib3", "socket"} & set(vars(codecs))


@pytest.mark.parametrize("protocol", ["plain", "v1", "v2"])
@pytest.mark.parametrize("depth", [101, 900, 100_000])
@pytest.mark.parametrize("around", ["[{}]", '{{"a":{}}}'])
def test_a_deeply_nested_response_is_refused(protocol, depth, around):
    opening, closing = around.replace("{{", "{").replace("}}", "}").split("{}")
    answer = (opening * depth + "1" + closing * depth).encode()
    try:
        [value] = decode(encode(protocol, "m", b"x"), answer)
    except PredictError as error:
        assert error.hint
    else:  # JSON too deep for Python's parser is read as text
        assert (protocol, depth) == ("plain", 100_000)
        assert value == answer.decode()


def test_a_response_can_be_nested():
    nested = "[" * 90 + "1" + "]" * 90
    assert decode(encode("plain", "m", b"x"), nested.encode()) == [json.loads(nested)]
