"""The messages of V2 in gRPC, compared with those of KServe's package."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as theirs

from manifests.grpc_messages import BadRequestError, load_messages, to_grpc, to_rest

MESSAGES = load_messages()
Tensor = theirs.ModelInferRequest.InferInputTensor


def read(request: theirs.ModelInferRequest) -> tuple[dict[str, Any], bytes]:
    """Return the JSON and the binary data that a request becomes."""
    body, size = to_rest(MESSAGES["InferRequest"].FromString(request.SerializeToString()))
    return json.loads(body[:size]), body[size:] if size else b""


def written(document: dict[str, Any], binary: bytes = b"") -> theirs.ModelInferResponse:
    """Return the response that KServe's client reads."""
    text = json.dumps(document).encode()
    made = to_grpc(MESSAGES, text + binary, len(text) if binary else None)
    return theirs.ModelInferResponse.FromString(made.SerializeToString())


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-1, 0]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, -0.0]),
        ("FP64", "fp64_contents", [1e300, 0.1]),
    ],
)
def test_typed_contents_are_the_data(datatype: str, field: str, values: list[Any]) -> None:
    tensor = Tensor(name="x", datatype=datatype, shape=[2, 1])
    getattr(tensor.contents, field).extend(values)
    document, binary = read(theirs.ModelInferRequest(model_name="m", id="7", inputs=[tensor]))
    assert document == {
        "id": "7",
        "inputs": [{"name": "x", "shape": [2, 1], "datatype": datatype, "data": values}],
    }
    assert binary == b""
    output = written(
        {"outputs": [{"name": "y", "shape": [2], "datatype": datatype, "data": values}]}
    ).outputs[0]
    assert list(getattr(output.contents, field)) == values
    assert (output.name, list(output.shape), output.datatype) == ("y", [2], datatype)


def test_strings_are_sent_as_binary_data_so_that_any_bytes_are_exact() -> None:
    tensor = Tensor(name="x", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend([b"\xff\x00", b""])
    document, binary = read(theirs.ModelInferRequest(inputs=[tensor]))
    assert document["inputs"][0]["parameters"] == {"binary_data_size": 10}
    assert binary == b"\x02\0\0\0\xff\0\0\0\0\0"
    assert "parameters" not in document
    response = written(
        {"outputs": [{"name": "y", "shape": [3], "datatype": "BYTES", "data": ["é", {"a": 1}, [["z"]]]}]}
    )
    assert list(response.outputs[0].contents.bytes_contents) == ["é".encode(), b'{"a": 1}', b"z"]


def test_raw_contents_stay_raw_in_both_directions() -> None:
    inputs = [Tensor(name=name, datatype="FP16", shape=[1]) for name in "ab"]
    document, binary = read(theirs.ModelInferRequest(inputs=inputs, raw_input_contents=[b"12", b"34"]))
    assert document["parameters"] == {"binary_data_output": True}
    assert [one["parameters"] for one in document["inputs"]] == [{"binary_data_size": 2}] * 2
    assert binary == b"1234"
    outputs = [
        {"name": name, "shape": [1], "datatype": "FP16", "parameters": {"binary_data_size": 2}}
        for name in "ab"
    ]
    response = written({"model_name": "m", "id": "1", "outputs": outputs}, b"5678")
    assert list(response.raw_output_contents) == [b"56", b"78"]
    assert (response.model_name, response.id) == ("m", "1")


def test_parameters_and_requested_outputs_are_kept() -> None:
    request = theirs.ModelInferRequest(inputs=[Tensor(name="x", datatype="FP32", shape=[0])])
    request.parameters["flag"].bool_param = False
    request.parameters["count"].int64_param = 0
    request.inputs[0].parameters["text"].string_param = "é"
    request.outputs.add(name="y").parameters["binary_data"].bool_param = True
    request.outputs.add(name="z")
    document, _ = read(request)
    assert document["parameters"] == {"flag": False, "count": 0}
    assert document["inputs"][0]["parameters"] == {"text": "é"}
    assert document["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}]
    parameters = {"a": True, "b": 2, "c": 0.5, "d": "x", "e": [1]}
    output = {"name": "y", "shape": [0], "datatype": "FP32", "data": [], "parameters": parameters}
    found = written({"outputs": [output]}).outputs[0].parameters
    assert (found["a"].bool_param, found["b"].int64_param, found["d"].string_param) == (True, 2, "x")
    assert found["e"].string_param == "[1]"


def test_what_the_other_form_cannot_express_is_an_error() -> None:
    with pytest.raises(BadRequestError, match="1 raw_input_contents for 0 inputs"):
        read(theirs.ModelInferRequest(raw_input_contents=[b"1"]))
    with pytest.raises(BadRequestError, match="x: FP16 is only possible in raw contents"):
        read(theirs.ModelInferRequest(inputs=[Tensor(name="x", datatype="FP16", shape=[1])]))
    outputs = [
        {"name": "a", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}},
        {"name": "b", "shape": [1], "datatype": "FP32", "data": [1.0]},
    ]
    with pytest.raises(BadRequestError, match="some outputs"):
        written({"outputs": outputs}, b"1234")


@pytest.mark.parametrize(
    ("ours", "other", "values"),
    [
        ("Yes", theirs.ModelReadyResponse, {"yes": True}),
        ("ServerMetadata", theirs.ServerMetadataResponse, {"name": "a", "version": "b", "extensions": ["c"]}),
        ("ModelMetadata", theirs.ModelMetadataResponse, {"name": "a", "versions": ["b"], "platform": "c"}),
        ("Named", theirs.ModelReadyRequest, {"name": "a", "version": "b"}),
    ],
)
def test_the_other_messages_have_the_same_fields(ours: str, other: Any, values: dict[str, Any]) -> None:
    message = other.FromString(MESSAGES[ours](**values).SerializeToString())
    renamed = {"ready" if key == "yes" else key: value for key, value in values.items()}
    assert message == other(**renamed)
