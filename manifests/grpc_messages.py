"""Converts between the messages of V2 in gRPC and V2 in JSON with binary tensor data.

The messages are described here, so that the version of KServe's Python package in the image does not matter.
Source of the field numbers: the Open Inference Protocol.
"""

import json

HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON before the binary data

# message -> "name type number", with * for a repeated field. A map is a repeated message on the wire.
_FIELDS = {
    "Nothing": "",
    "Named": "name string 1, version string 2",
    "Yes": "yes bool 1",
    "Health": "status int32 1",
    "ServerMetadata": "name string 1, version string 2, extensions* string 3",
    "TensorMetadata": "name string 1, datatype string 2, shape* int64 3",
    "ModelMetadata": "name string 1, versions* string 2, platform string 3, inputs* TensorMetadata 4,"
    " outputs* TensorMetadata 5",
    "Parameter": "bool_param bool 1, int64_param int64 2, string_param string 3, double_param double 4,"
    " uint64_param uint64 5",
    "Entry": "key string 1, value Parameter 2",
    "Contents": "bool_contents* bool 1, int_contents* int32 2, int64_contents* int64 3,"
    " uint_contents* uint32 4, uint64_contents* uint64 5, fp32_contents* float 6,"
    " fp64_contents* double 7, bytes_contents* bytes 8",
    "Tensor": "name string 1, datatype string 2, shape* int64 3, parameters* Entry 4, contents Contents 5",
    "Output": "name string 1, parameters* Entry 2",
    "InferRequest": "model_name string 1, model_version string 2, id string 3, parameters* Entry 4,"
    " inputs* Tensor 5, outputs* Output 6, raw* bytes 7",
    "InferResponse": "model_name string 1, model_version string 2, id string 3, parameters* Entry 4,"
    " outputs* Tensor 5, raw* bytes 6",
}
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class BadRequestError(ValueError):
    """A request that V2 in JSON cannot express. The message is for the client."""


def load_messages():
    """Return the class of every message by its name. Raises ImportError without protobuf."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    # In proto2, which this is, a field is also seen if it is set to its default.
    file = descriptor_pb2.FileDescriptorProto(name="kdeploy.proto", package="kdeploy")

    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for text in filter(None, fields.split(",")):
            label, kind, number = text.split()
            field = message.field.add(name=label.rstrip("*"), number=int(number))
            field.label = field.LABEL_REPEATED if label.endswith("*") else field.LABEL_OPTIONAL
            field.options.packed = label.endswith("*") and kind not in ("string", "bytes", *_FIELDS)
            if kind in _FIELDS:
                field.type, field.type_name = field.TYPE_MESSAGE, f".kdeploy.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = {name: pool.FindMessageTypeByName(f"kdeploy.{name}") for name in _FIELDS}
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}


def to_rest(request):
    """Return the body of a V2 request, and the size of its JSON if binary data follows, else None.

    Raises BadRequestError.
    """
    document, binary = {}, []
    if request.id:
        document["id"] = request.id
    parameters = _read_parameters(request.parameters)
    if request.raw:
        if len(request.raw) != len(request.inputs):
            raise BadRequestError(f"{len(request.raw)} raw_input_contents for {len(request.inputs)} inputs")
        parameters["binary_data_output"] = True
    if parameters:
        document["parameters"] = parameters
    document["inputs"] = []
    for index, tensor in enumerate(request.inputs):
        written = _read_head(tensor)
        if request.raw or tensor.datatype == "BYTES":
            data = request.raw[index] if request.raw else _pack(tensor.contents.bytes_contents)
            written.setdefault("parameters", {})["binary_data_size"] = len(data)
            binary.append(data)
        else:
            written["data"] = list(getattr(tensor.contents, _field_of(tensor)))
        document["inputs"].append(written)
    if request.outputs:
        document["outputs"] = [_read_named(output) for output in request.outputs]
    text = json.dumps(document).encode()
    return b"".join([text, *binary]), len(text) if binary else None


def to_grpc(messages, body, json_size):
    """Return the message for a V2 response; `json_size` is that of its JSON if binary data follows.

    Raises BadRequestError for an output that has no gRPC form.
    """
    document, position = json.loads(body[:json_size]), json_size or 0
    response = messages["InferResponse"](
        model_name=str(document.get("model_name") or ""),
        model_version=str(document.get("model_version") or ""),
        id=str(document.get("id") or ""),
    )
    for output in document["outputs"]:
        tensor = response.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
        parameters = output.get("parameters") or {}
        size = parameters.pop("binary_data_size", None)
        _write_parameters(tensor, parameters)
        if size is not None:
            response.raw.append(body[position : position + size])
            position += size
        else:
            data = list(_flat(output["data"]))
            if output["datatype"] == "BYTES":
                data = [one.encode() if isinstance(one, str) else json.dumps(one).encode() for one in data]
            getattr(tensor.contents, _field_of(tensor)).extend(data)
    if response.raw and len(response.raw) != len(response.outputs):
        raise BadRequestError("some outputs of the response are binary, and some are not")
    return response


def _read_head(tensor):
    written = {"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype}
    parameters = _read_parameters(tensor.parameters)
    return {**written, "parameters": parameters} if parameters else written


def _read_named(output):
    parameters = _read_parameters(output.parameters)
    return {"name": output.name, "parameters": parameters} if parameters else {"name": output.name}


def _read_parameters(entries):
    found = {}
    for entry in entries:
        [*fields] = entry.value.ListFields()
        found[entry.key] = fields[0][1] if fields else False
    return found


def _write_parameters(tensor, parameters):
    for key, value in parameters.items():
        kind = {bool: "bool", int: "int64", float: "double", str: "string"}.get(type(value))
        text = value if kind else json.dumps(value)
        setattr(tensor.parameters.add(key=key).value, f"{kind or 'string'}_param", text)


def _field_of(tensor):
    if tensor.datatype not in _CONTENTS:
        raise BadRequestError(f"{tensor.name}: {tensor.datatype} is only possible in raw contents")
    return _CONTENTS[tensor.datatype]


def _pack(strings):
    """Return strings as binary data: the length in 4 bytes before each."""
    return b"".join(len(one).to_bytes(4, "little") + one for one in strings)


def _flat(data):
    for one in data if isinstance(data, list) else [data]:
        if isinstance(one, list):
            yield from _flat(one)
        else:
            yield one
