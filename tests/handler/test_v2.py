"""V2 as KServe's samples, envelope and clients have it: whole tensors, loose shapes, and binary data."""

import json
import struct
from itertools import product

import numpy as np
import pytest
import torch
from ts.torch_handler.base_handler import BaseHandler
from ts.torch_handler.request_envelope.kserve import KServeEnvelope
from ts.torch_handler.request_envelope.kservev2 import KServev2Envelope

from tests.handler.torchserve_worker import Ask, Worker, ask_json, ask_raw, ask_v1, ask_v2, tensor

SLICES = {"v2_rows": "first-dimension"}


def echo(data, context):
    return [row["data"] for row in data]


# ---- the same answers as with KServe's envelope


class Pixels:
    """Reads rows as TorchServe's vision handlers do."""

    def __call__(self, data, context):
        images = [row.get("data") or row.get("body") for row in data]
        images = [
            torch.tensor([ord(c) for c in i]) if isinstance(i, str) else torch.tensor(i) for i in images
        ]
        return [self.answer(image.to(torch.float64)) for image in images]


class Classes(Pixels):
    def answer(self, image):
        return int(image.sum()) % 10


class Scores(Pixels):
    def answer(self, image):
        return (image.flatten()[:3] / 2).tolist()


class Labels(Pixels):
    def answer(self, image):
        return f"label {list(image.shape)}"


class Maps(Pixels):
    """As an explanation: a value per pixel."""

    def answer(self, image):
        return image.tolist()


class Arrays(Pixels):
    def answer(self, image):
        return image.numpy().astype("float32")


def combined(data, context):
    """One answer to two inputs, as KServe's BERT sample."""
    found = {}
    for row in data:
        assert all(key in row for key in ("name", "shape", "datatype", "data"))
        found[row["name"]] = torch.tensor(row["data"]).unsqueeze(dim=0)
    return [int((found["input_ids"] * found["attention_masks"]).sum())]


IMAGE = [[round(0.1 * (x + y), 4) for x in range(28)] for y in range(28)]
SAMPLES = {
    "a tensor without a batch dimension": {"inputs": [tensor([IMAGE], [1, 28, 28], name="2d3f")]},
    "the same, flat": {"inputs": [tensor([each for line in IMAGE for each in line], [1, 28, 28])]},
    "text as numbers": {"id": "d3b1", "inputs": [tensor(list(b"Bloomberg has reported"), [22], "INT64")]},
    "an unknown size": {"inputs": [tensor([1, 2, 3], [-1], "INT64")]},
    "a batch of a known size": {"inputs": [tensor([[1, 2], [3, 4]], [-1, 2], "UINT8")]},
    "bytes": {"inputs": [tensor(["QUJD"], [1], "BYTES", "4b7c")]},
    "two inputs": {"inputs": [tensor([1, 2], name="a"), tensor(["xyz"], datatype="BYTES", name="b")]},
}  # fmt: skip
HANDLERS = [Classes(), Scores(), Labels(), Maps(), Arrays()]


def with_envelope(entry, ask, version=KServev2Envelope):
    """Return TorchServe's answer with KServe's envelope, at batch 1."""
    worker = Worker(lambda data, context: version(entry).handle(data, context), settings={"body": "handler"})
    return worker.predict(ask)[0]


@pytest.mark.parametrize(("body", "entry"), product(SAMPLES.values(), HANDLERS))
@pytest.mark.parametrize("count", [1, 8])
def test_the_answers_are_those_of_kserves_envelope(body, entry, count):
    expected = with_envelope(entry, ask_json(body)).json
    if "id" not in body:
        del expected["id"]  # TorchServe's ID of the request
    expected["model_name"] = "served-name"  # the envelope has the archive's
    for answer in Worker(entry).predict(*[ask_json(body)] * count):
        assert answer.json == expected


def test_one_answer_to_two_inputs_is_that_of_kserves_envelope():
    inputs = [tensor([1, 2, 3], 3, "INT64", "input_ids"), tensor([1, 1, 0], 3, "INT64", "attention_masks")]
    shaped = [{**each, "shape": [3]} for each in inputs]  # the envelope does not take KServe's own sample
    expected = with_envelope(combined, ask_v2(*shaped, id="1")).json["outputs"]
    ask = ask_v2(*inputs, id="1")
    for answer in Worker(combined).predict(ask, ask, ask_v2(*shaped)):
        assert (
            answer.json["outputs"]
            == expected
            == [{"name": "input_ids", "datatype": "INT64", "data": [3], "shape": [1]}]
        )


def test_several_inputs_of_many_requests_are_not_mixed():
    calls = []

    def entry(data, context):
        calls.append([row["data"] for row in data])
        return [sum(row["data"][0] for row in data)]

    asks = [ask_v2(tensor([n]), tensor([10 * n], name="y")) for n in range(1, 5)]
    answers = Worker(entry).predict(ask_v1([0]), *asks)
    assert answers[0].json == {"predictions": [0]}
    assert [answer.json["outputs"][0]["data"] for answer in answers[1:]] == [[11], [22], [33], [44]]
    assert calls == [[[0]], [[1], [10]], [[2], [20]], [[3], [30]], [[4], [40]]]


def test_several_inputs_fail_together():
    def entry(data, context):
        if len(data) > 1:
            raise ValueError("no")
        return [1]

    good, bad = Worker(entry).predict(ask_v1([0]), ask_v2(tensor([1]), tensor([1], name="y")))
    assert (good.status, bad.status, bad.json) == (200, 500, {"error": "ValueError: no", "row": 0})


@pytest.mark.parametrize("answers", [[], [1, 2, 3], "text"], ids=str)
def test_two_inputs_need_one_or_two_answers(answers):
    [answer] = Worker(lambda data, context: answers).predict(ask_v2(tensor([1]), tensor([1], name="y")))
    assert answer.status == 500
    assert "for 2 row(s)" in answer.json["error"]


V1_SAMPLES = {
    "a picture": {"instances": [{"data": "QUJD"}]},
    "two pictures": {"instances": [{"data": "QUJD"}, {"data": "REVG", "target": 1}]},
    "a tensor": {"instances": [{"data": IMAGE}]},
}


@pytest.mark.parametrize(("body", "entry"), product(V1_SAMPLES.values(), HANDLERS[:4]))
@pytest.mark.parametrize("headers", [{}, {"explain": "True"}], ids=str)
@pytest.mark.parametrize("count", [1, 8])
def test_v1_answers_are_those_of_kserves_envelope(body, entry, headers, count):
    expected = with_envelope(entry, ask_json(body, **headers), KServeEnvelope).json
    for answer in Worker(entry).predict(*[ask_json(body, **headers)] * count):
        assert answer.json == expected


@pytest.mark.parametrize("version", [KServeEnvelope, KServev2Envelope])
def test_torchserves_own_explanation_is_that_of_the_envelope(version):
    class Explainer(BaseHandler):
        def initialize(self, context):
            self.context = context

        def preprocess(self, data):
            return torch.tensor([row["data"] for row in data], dtype=torch.float64)

        def get_insights(self, tensor_data, raw, target):
            attributions = (tensor_data * (target + 1)).tolist()
            return attributions * 2 if version is KServeEnvelope else [[*attributions[0], *raw]]

    service = Explainer()
    worker = Worker(service.handle)
    service.initialize(worker.context)
    row = {"data": [1.5, 2], "target": 2}
    body = {"instances": [row]} if version is KServeEnvelope else {"id": "1", "inputs": [tensor([1.5, 2])]}
    # It explains only the first row, and returns a list of any length.
    expected = with_envelope(service.handle, ask_json(body, explain="True"), version).json
    [answer] = worker.predict(ask_json(body, explain="True"))
    assert answer.json == {**expected, **({} if version is KServeEnvelope else {"model_name": "served-name"})}


# ---- loose forms


@pytest.mark.parametrize(
    ("sent", "rows"),
    [
        (tensor([1, 2, 3, 4], [2, 2]), [[[1, 2], [3, 4]]]),
        (tensor([1, 2, 3, 4], [2, -1]), [[[1, 2], [3, 4]]]),
        (tensor([[1, 2], [3, 4]], [1, 2, 2]), [[[[1, 2], [3, 4]]]]),
        (tensor([1, 2, 3], 3), [[1, 2, 3]]),
        (tensor([1, 2, 3], -1), [[1, 2, 3]]),
        (tensor([5], []), [5]),
        (tensor("QUJD", -1, "BYTES"), ["QUJD"]),
        (tensor("QUJD", [1], "BYTES"), ["QUJD"]),
        (tensor(["a", "b"], [2], "BYTES"), ["a", "b"]),
        (tensor([["a", "b"]], [1, 2], "BYTES"), ["a", "b"]),
        (tensor([], [0]), []),
        (tensor([], [0], "BYTES"), []),
    ],
    ids=str,
)
def test_rows_of_one_input(sent, rows):
    seen = []

    def entry(data, context):
        seen.extend(row["data"] for row in data)
        return [0] * len(data)

    [answer] = Worker(entry).predict(ask_v2(sent))
    assert answer.status == 200
    assert seen == rows


def test_a_row_has_the_keys_of_its_tensor():
    def entry(data, context):
        keys = ["name", "shape", "datatype", "data", "parameters"]
        return [[list(row.keys()), [row.get(key) for key in keys]] for row in data]

    sent = {**tensor([1, 2], -1, "INT64"), "parameters": {"content_type": "np"}}
    [answer] = Worker(entry).predict(ask_v2(sent, parameters={"top": 3}))
    keys, values = json.loads(answer.json["outputs"][0]["data"][0])
    assert values == ["x", [2], "INT64", [1, 2], {"content_type": "np"}]
    assert {"name", "shape", "datatype", "data", "body", "parameters"} == set(keys)


@pytest.mark.parametrize("settings", [{}, SLICES], ids=str)
def test_parameters_of_the_request_can_be_read_in_each_row(settings):
    worker = Worker(lambda data, context: [row["parameters"]["top"] for row in data], settings=settings)
    [answer] = worker.predict(ask_v2(tensor(["a"], datatype="BYTES"), parameters={"top": 3}))
    assert answer.json["outputs"][0]["data"] == [3]


def test_outputs_have_the_names_that_the_request_asks_for():
    ask = ask_v2(
        tensor([1]), tensor([2], name="y"), outputs=[{"name": "first"}, {"name": "second"}, {"name": "z"}]
    )
    [answer] = Worker(echo).predict(ask)
    assert [(output["name"], output["data"]) for output in answer.json["outputs"]] == [
        ("first", [1]),
        ("second", [2]),
    ]


@pytest.mark.parametrize(
    "outputs", [None, [], ["x"], [{}], [{"name": 5}], {"name": "z"}, [{"parameters": 5}]], ids=str
)
def test_other_outputs_of_a_request_are_ignored(outputs):
    [answer] = Worker(echo).predict(ask_v2(tensor([1]), outputs=outputs))
    assert answer.json["outputs"] == [{"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}]


def test_a_row_to_explain_is_an_object():
    """TorchServe's explain_handle reads nothing else."""

    def entry(data, context):
        return [isinstance(row, dict) and (row.get("data") or row.get("body")) for row in data]

    v2, v1 = Worker(entry).predict(
        ask_json({"inputs": [tensor([1, 2])]}, explain="True"), ask_v1([1], "a", {"data": 3}, explain="True")
    )
    assert v2.json["outputs"][0]["data"] == [1, 2]
    assert v1.json == {"explanations": [[1], "a", 3]}


# ---- binary data


def binary(*tensors, header=None, extra=b"", length=None, **body):
    """A request as KServe's and Triton's clients send it: `tensors` are (tensor without data, bytes)."""
    inputs, tail = [], b""
    for sent, data in tensors:
        inputs.append({**sent, "parameters": {"binary_data_size": len(data)}})
        tail += data
    text = json.dumps({"inputs": inputs, **body}).encode()
    headers = {header or "Inference-Header-Content-Length": str(len(text)) if length is None else length}
    return Ask((("body", "application/octet-stream", text + tail + extra),), headers)


def described(datatype, shape, name="x"):
    return {"name": name, "shape": shape, "datatype": datatype}


def strings(*values):
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


NUMPY = {"BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
NUMPY.update(
    {f"{u}INT{8 * size}": f"<{i}{size}" for u, i in (("", "i"), ("U", "u")) for size in (1, 2, 4, 8)}
)


@pytest.mark.parametrize(("datatype", "dtype"), NUMPY.items())
@pytest.mark.parametrize("header", ["Inference-Header-Content-Length", "inference-header-content-length"])
def test_binary_numbers_are_the_same_rows_as_in_json(datatype, dtype, header):
    array = np.array([[0, 1, 2], [1, 0, 1]]).astype(dtype)
    [answer] = Worker(echo).predict(binary((described(datatype, [2, 3]), array.tobytes()), header=header))
    [expected] = Worker(echo).predict(ask_v2(tensor(array.tolist(), [2, 3], datatype)))
    assert answer.status == expected.status == 200
    assert answer.json == expected.json
    assert answer.content_type == "application/json"


def test_binary_bf16():
    data = struct.pack("<3f", 1.5, -2.0, 0.0)
    upper = b"".join(data[at + 2 : at + 4] for at in range(0, len(data), 4))
    [answer] = Worker(echo).predict(binary((described("BF16", [3]), upper)))
    assert answer.json["outputs"][0]["data"] == [1.5, -2.0, 0.0]


def test_binary_strings_are_text_as_in_json_and_other_bytes_are_bytes():
    picture = b"\xff\xd8 not text"
    seen = []

    def entry(data, context):
        seen.extend(
            (type(row["data"]), bytes(row["data"]) if isinstance(row["data"], bytes) else row["data"])
            for row in data
        )
        return [len(row.get("data") or row.get("body")) for row in data]

    [answer] = Worker(entry).predict(binary((described("BYTES", [2]), strings("grün".encode(), picture))))
    assert seen == [(str, "grün"), (bytes, picture)]
    assert answer.json["outputs"][0]["data"] == [4, len(picture)]


def test_binary_and_json_inputs_in_one_request():
    mixed = binary((described("FP32", [2]), struct.pack("<2f", 1, 2)))
    text, tail = mixed.parts[0][2][:-8], mixed.parts[0][2][-8:]
    body = json.loads(text)
    body["inputs"].append(tensor([3], name="y"))
    text = json.dumps(body).encode()
    ask = Ask((("body", "", text + tail),), {"inference-header-content-length": str(len(text))})
    [answer] = Worker(echo).predict(ask)
    assert [output["data"] for output in answer.json["outputs"]] == [[1.0, 2.0], [3]]


def read_binary(answer):
    """Read an answer as a client does: its JSON, and the bytes of each output."""
    size = int(answer.headers["Inference-Header-Content-Length"])
    assert answer.content_type == "application/octet-stream"
    document, tail = json.loads(answer.body[:size]), answer.body[size:]
    data = []
    for output in document["outputs"]:
        count = output["parameters"]["binary_data_size"]
        data.append(tail[:count])
        tail = tail[count:]
    assert tail == b""
    return document, data


@pytest.mark.parametrize(
    ("value", "datatype", "dtype"),
    [
        ([1.5, 2.5], "FP64", "<f8"),
        ([1, -2], "INT64", "<i8"),
        ([True, False], "BOOL", "?"),
        (np.array([1.5, float("nan")], "float32"), "FP32", "<f4"),
        (np.array([1.5], "float16"), "FP16", "<f2"),
        (torch.tensor([1, 2], dtype=torch.uint8), "UINT8", "u1"),
    ],
    ids=str,
)
@pytest.mark.parametrize("by", ["request", "output"])
def test_binary_outputs(value, datatype, dtype, by):
    wish = {"parameters": {"binary_data_output": True}}
    wish = wish if by == "request" else {"outputs": [{"name": "probs", "parameters": {"binary_data": True}}]}
    [answer] = Worker(lambda data, context: [value]).predict(ask_v2(tensor([1]), id="7", **wish))
    document, [data] = read_binary(answer)
    assert document["id"] == "7"
    [output] = document["outputs"]
    assert output["name"] == ("x" if by == "request" else "probs")
    assert (output["datatype"], output["shape"]) == (datatype, [len(value)])
    assert np.array_equal(np.frombuffer(data, dtype), np.array(value), equal_nan=datatype[0] == "F")


def test_binary_strings_in_an_output():
    ask = ask_v2(tensor(["a", "b"], datatype="BYTES"), parameters={"binary_data_output": True})
    [answer] = Worker(lambda data, context: ["grün", {"a": 1}]).predict(ask)
    document, [data] = read_binary(answer)
    assert document["outputs"][0]["shape"] == [2]
    assert data == strings("grün".encode(), b'{"a": 1}')


def test_bf16_in_an_output():
    value = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    [answer] = Worker(lambda data, context: [value.float().numpy()]).predict(ask_v2(tensor([1])))
    assert answer.json["outputs"][0]["datatype"] == "FP32"
    [answer] = Worker(lambda data, context: [value]).predict(
        ask_v2(tensor([1]), parameters={"binary_data_output": True})
    )
    _, [data] = read_binary(answer)
    assert data == b"\xc0\x3f\x00\xc0"


def test_one_output_can_be_json_and_another_binary():
    outputs = [{"name": "a"}, {"name": "b", "parameters": {"binary_data": True}}]
    [answer] = Worker(echo).predict(ask_v2(tensor([1]), tensor([2], name="y"), outputs=outputs))
    size = int(answer.headers["Inference-Header-Content-Length"])
    first, second = json.loads(answer.body[:size])["outputs"]
    assert first["data"] == [1]
    assert second["parameters"] == {"binary_data_size": 8}
    assert answer.body[size:] == struct.pack("<q", 2)


def sized(size, data):
    sent = {**described("FP32", [1]), "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [sent]}).encode()
    return Ask((("body", "", text + data),), {"Inference-Header-Content-Length": str(len(text))})


BAD = {
    "too few bytes": binary((described("FP32", [2]), b"\0" * 4)),
    "too many bytes": binary((described("FP32", [1]), b"\0" * 8)),
    "part of a number": binary((described("FP32", [1]), b"\0" * 3)),
    "bytes after the data": binary((described("FP32", [1]), b"\0" * 4), extra=b"x"),
    "a long string": binary((described("BYTES", [1]), struct.pack("<I", 2**31) + b"x")),
    "part of a length": binary((described("BYTES", [1]), b"\1\0")),
    "a length beyond the body": binary((described("FP32", [1]), b"\0" * 4), length="100000"),
    "a length within the JSON": binary((described("FP32", [1]), b"\0" * 4), length="5"),
    "a negative length": binary((described("FP32", [1]), b"\0" * 4), length="-5"),
    "a length that is not a number": binary((described("FP32", [1]), b"\0" * 4), length="ten"),
    "a size beyond the body": sized(9, b""),
    "a negative size": sized(-4, b"0000"),
    "a size that is not a number": sized("4", b"0000"),
    "no binary data at all": ask_v2({**described("FP32", [1]), "parameters": {"binary_data_size": 4}}),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_only_the_request_with_invalid_binary_data_gets_400(bad):
    before, answer, after = Worker(echo).predict(ask_v1("a"), bad, ask_raw(b'{"instances": ["b"]}'))
    assert (before.json, after.json) == ({"predictions": ["a"]}, {"predictions": ["b"]})
    assert answer.status == 400
    assert len(answer.json["error"]) > 20
