"""Properties: tensors survive the division into rows, and an answer does not depend on its batch."""

import copy
import json
import logging
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kdeploy_v2 import read_v2
from ts.utils.util import PredictionException

from tests.handler.torchserve_worker import Ask, Worker, ask_json, ask_raw, ask_v1, ask_v2, tensor

shapes = st.lists(st.integers(1, 4), max_size=3).flatmap(
    lambda inner: st.integers(0, 4).map(lambda rows: [rows, *inner])
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)

SLICES = {"v2_rows": "first-dimension"}
DATATYPES = {"INT64": np.int64, "UINT8": np.uint8, "FP32": np.float32, "BOOL": np.bool_}


@given(shapes, st.sampled_from(sorted(DATATYPES)), st.booleans(), st.randoms())
def test_rows_equal_numpys_slices_of_the_tensor(shape, datatype, flat, random):
    array = np.array([random.randrange(2) for _ in range(int(np.prod(shape)))], DATATYPES[datatype])
    array = array.reshape(shape)
    sent = tensor((array.ravel() if flat else array).tolist(), shape, datatype)
    rows = read_v2({"inputs": [sent]}, None, "first-dimension")
    assert rows.outputs == ["x"]
    assert rows.values == array.tolist()


@given(shapes.filter(lambda shape: shape[0]), st.sampled_from(sorted(DATATYPES)), st.booleans())
def test_the_rows_of_a_tensor_become_the_same_tensor_again(shape, datatype, as_arrays):
    array = np.arange(int(np.prod(shape))).astype(DATATYPES[datatype]).reshape(shape)
    values = list(array) if as_arrays else array.tolist()
    worker = Worker(lambda data, context: values, settings=SLICES)
    [answer] = worker.predict(ask_v2(tensor([0] * shape[0])))
    [output] = answer.json["outputs"]
    assert output["shape"] == shape
    by_python = {"UINT8": "INT64", "FP32": "FP64"}.get(datatype, datatype)
    assert output["datatype"] == (datatype if as_arrays else by_python)
    assert np.array_equal(np.array(output["data"]).reshape(shape), array)


@given(st.lists(anything, min_size=1, max_size=4))
def test_any_json_value_returns_unchanged_in_both_protocols(values):
    v1, v2 = Worker(lambda data, context: copy.deepcopy(values) * 2, settings=SLICES).predict(
        ask_v1(*values), ask_v2(tensor([0] * len(values)))
    )
    assert len(v1.json["predictions"]) == len(values)
    [output] = v2.json["outputs"]
    assert output["shape"][0] == len(values)
    assert len(output["data"]) == np.prod(output["shape"])


tensor_keys = st.sampled_from(["name", "shape", "datatype", "data"])
tensor_values = anything | st.sampled_from(["FP32", "BYTES"]) | st.lists(st.integers(-1, 3), max_size=3)
tensor_likes = st.dictionaries(tensor_keys, tensor_values, max_size=4)


@given(st.sampled_from(["instances", "inputs"]), anything | st.lists(tensor_likes, max_size=3), st.booleans())
def test_no_body_fails_the_other_requests_of_its_batch(key, value, as_bytes):
    body = {key: value}
    hostile = ask_raw(json.dumps(body).encode()) if as_bytes else ask_json(body)
    before, answer, after = Worker(lambda data, context: list(range(len(data)))).predict(
        ask_v1("a"), hostile, ask_v1("b")
    )
    assert before.json == {"predictions": [0]}
    assert after.status == 200
    assert answer.status in (200, 400)


# ---- the same answer in every batch


def value_of(row):
    value = row.get("data") or row.get("body")
    return value.decode() if isinstance(value, bytearray) else value


def answer_one(row):
    value = value_of(row)
    if value == "poison":
        raise ValueError(value)
    if value == "refused":
        raise PredictionException(value, 422)
    return {"unwritable": {1, 2}, "tensor": np.array([1.0])}.get(value, {"saw": str(value)})


def together(data, context):
    for index, row in enumerate(data):
        context.set_response_header(index, "saw", str(value_of(row)).encode("ascii", "replace").decode())
    return [answer_one(row) for row in data]


def one_row(data, context):
    return together(data[:1], context)


def leaves_out(data, context):
    kept = [row for row in data if value_of(row) not in ("poison", "refused")]
    return together(kept, context) if len(kept) == len(data) else [answer_one(row) for row in kept]


def writes_into_rows(data, context):
    answers = together(data, context)
    for row in data:
        row["data"] = "written"
    return answers


def only_single(data, context):
    if len(data) > 1:
        raise TypeError("one at a time")
    return together(data, context)


words = st.sampled_from(["a", "b", "poison", "refused", "unwritable", "tensor"])
plain_words = words.filter(lambda word: word not in ("unwritable", "tensor"))
multipart = words.map(lambda word: Ask((("data", "text/plain", word.encode()), ("more", "", b"x"))))
requests = st.one_of(
    st.lists(words, max_size=3).map(lambda rows: ask_v1(*rows)),
    st.lists(words, max_size=3).map(lambda rows: ask_v1(*[{"data": row} for row in rows])),
    words.map(partial(ask_v1, explain="True")),
    st.lists(words, min_size=1, max_size=3).map(lambda rows: ask_v2(tensor(rows, datatype="BYTES"), id="7")),
    words.map(lambda word: ask_raw(word.encode())),
    words.map(lambda word: ask_raw(json.dumps({"instances": [word]}).encode())),
    words.map(lambda word: ask_json(word)),
    multipart,
    st.sampled_from([ask_json({"instances": 3}), ask_v2(tensor([1, 2], [3]))]),
)
HANDLERS = [together, one_row, leaves_out, writes_into_rows, only_single]


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    """Log no tracebacks: the tests have thousands of failing rows."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


batches = st.lists(st.lists(requests, min_size=1, max_size=5), min_size=1, max_size=3)


@settings(max_examples=2 * settings.default.max_examples, deadline=None)
@given(st.sampled_from(HANDLERS), batches)
def test_an_answer_does_not_depend_on_its_batch(handler, batches):
    worker = Worker(handler)
    for batch in batches:
        for ask, answer in zip(batch, worker.predict(*batch), strict=True):
            assert answer.status in (200, 400, 422, 500)
            assert [answer] == Worker(handler).predict(ask)
