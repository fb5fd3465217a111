"""Requests and responses of the three protocols, byte for byte."""

from __future__ import annotations

import base64
import json
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.errors import PredictError
from deployer.predict import codecs
from deployer.predict.codecs import Request, encode, own_protocol, request_path, request_size
from deployer.predict.content import BYTES, JSON

PROTOCOLS = ("plain", "json", "v1", "v2")
FILES = st.binary(max_size=200)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


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
        ("json", "/predictions/digits"),
        ("v1", "/v1/models/digits:predict"),
        ("v2", "/v2/models/digits/infer"),
    ],
)
def test_each_protocol_has_its_path(protocol, path):
    assert request_path(protocol, "digits") == path


@pytest.mark.parametrize(
    ("protocol", "path"),
    [
        ("plain", "/explanations/digits"),
        ("json", "/explanations/digits"),
        ("v1", "/v1/models/digits:explain"),
        ("v2", "/v2/models/digits/explain"),
    ],
)
def test_explanations_have_their_paths(protocol, path):
    assert encode(protocol, "digits", b"x", explain=True).path == path


def test_each_protocol_has_its_document():
    file = b"two!"
    assert json.loads(encode("json", "m", file).body) == {"data": "dHdvIQ=="}
    assert json.loads(encode("v1", "m", file).body) == {"instances": [{"data": "dHdvIQ=="}]}
    assert json.loads(encode("v2", "m", file).body) == {
        "inputs": [{"name": "input-0", "shape": [1], "datatype": "BYTES", "data": ["dHdvIQ=="]}]
    }
    plain = encode("plain", "m", b"\xff\xd8", "image/jpeg")
    assert (plain.body, plain.content_type, plain.whole) == (b"\xff\xd8", "image/jpeg", False)


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
    assert encode(protocol, "m", data, BYTES) == made


# JSON files


@given(VALUES)
def test_a_json_file_is_one_instance_of_v1_and_unchanged_on_the_plain_path(value):
    if isinstance(value, dict):
        value.pop("instances", None)
    file = json.dumps(value).encode()
    assert encode("plain", "m", file, JSON).body == file
    made = encode("v1", "m", file, JSON)
    assert json.loads(made.body) == {"instances": [value]}
    assert not made.whole


@given(st.lists(VALUES, max_size=4))
def test_a_json_file_that_is_a_v1_request_is_sent_unchanged(values):
    file = json.dumps({"instances": values}).encode()
    made = encode("v1", "m", file, JSON)
    assert made == Request("v1", "/v1/models/m:predict", file, JSON, whole=True)


def test_a_json_file_that_is_a_v2_request_is_sent_unchanged():
    tensor = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}
    file = json.dumps({"inputs": [tensor]}).encode()
    made = encode("v2", "m", file, JSON)
    assert (made.body, made.whole) == (file, True)


def test_other_json_is_sent_as_text_in_v2():
    file = b'{"a": 1}'
    [tensor] = json.loads(encode("v2", "m", file, JSON).body)["inputs"]
    assert tensor["data"] == ['{"a": 1}']


@pytest.mark.parametrize(
    ("value", "protocol"),
    [
        ({"instances": []}, "v1"),
        ({"instances": [1], "parameters": {}}, "v1"),
        ({"instances": "text"}, None),
        ({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}, "v2"),
        ({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES"}]}, None),
        ({"inputs": [{"role": "user", "content": "hi"}]}, None),
        ({"inputs": [{"name": "Ada"}]}, None),
        ({"inputs": []}, None),
        ({"inputs": ["a"]}, None),
        ({"inputs": {"a": 1}}, None),
        ([1, 2], None),
    ],
)
def test_a_v1_or_v2_request_is_recognized(value, protocol):
    body = json.dumps(value).encode()
    assert own_protocol(body, JSON) == protocol
    assert own_protocol(body, "text/plain") is None
    for other in PROTOCOLS:
        made = encode(other, "m", body, JSON)
        if other in ("plain", "json") or other == protocol:
            assert made.body == body
        elif other == "v1":
            assert json.loads(made.body) == {"instances": [value]}


def test_an_incomplete_tensor_is_left_to_the_server():
    for body in (b'{"inputs": [{"shape": [1]}]}', b'{"inputs": [{"data": [1], "name": "x"}]}'):
        assert encode("v2", "m", body, JSON).body == body


# Text


@pytest.mark.parametrize("text", ["one two\nthree", 'with "quotes" and \\', "caf\u00e9 \u4e2d", " "])
def test_text_is_sent_as_text(text):
    data = text.encode()
    [v1] = json.loads(encode("v1", "m", data, "text/plain").body)["instances"]
    [v2] = json.loads(encode("v2", "m", data, "text/csv").body)["inputs"]
    assert v1 == {"data": text}
    assert v2["data"] == [text]
    plain = encode("plain", "m", data, "text/csv")
    assert (plain.body, plain.content_type) == (data, "text/csv")
    assert json.loads(encode("json", "m", data, "text/plain").body) == {
        "data": base64.b64encode(data).decode()
    }


def test_text_in_another_encoding_is_sent_by_the_plain_protocol_only():
    data = "caf\u00e9".encode("latin-1")
    assert encode("plain", "m", data, "text/csv").body == data
    for protocol in ("v1", "v2"):
        assert "the text is not UTF-8" in refused(encode, protocol, "m", data, "text/csv")


# gRPC


def test_grpc_carries_what_v2_carries():
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    for data, content_type in (
        (b"a b", "text/plain"),
        (b"\xff", BYTES),
        (json.dumps({"inputs": [tensor]}).encode(), JSON),
    ):
        v2, made = (encode(protocol, "m", data, content_type) for protocol in ("v2", "grpc-v2"))
        assert (made.body, made.whole) == (v2.body, v2.whole)
    assert "gRPC has no explanations" in refused(partial(encode, explain=True), "grpc-v2", "m", b"x")


# JSON


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_is_sent_in_utf_8(encoding):
    file = '{"a": "ü"}'.encode(encoding)
    assert encode("plain", "m", file, JSON).body == '{"a": "ü"}'.encode()
    assert json.loads(encode("v1", "m", file, JSON).body) == {"instances": [{"a": "ü"}]}


@pytest.mark.parametrize("data", [b"{", b"", b"\xff\xfe\xff", b"[" * 100_000, b'"\xff"', b"1" * 5000])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_invalid_json_file_is_refused(data, protocol):
    assert "invalid JSON" in refused(encode, protocol, "m", data, JSON)


def test_the_module_is_pure():
    assert not {"os", "pathlib", "urllib3", "socket"} & set(vars(codecs))
