"""V2 (the Open Inference Protocol): reads the tensors of a request as rows, and writes values as tensors.

`model.v2-rows` decides what a row is:

* `tensor`, as KServe's own envelope for TorchServe: each input is a row, of any shape. Several inputs
  are one call, and each value is an output with the name of its input, flattened. The envelope
  reads only the first string of a BYTES input; here, each string of an only input is a row.
* `first-dimension`: each slice along the first dimension is a row. With several inputs, a row is
  `{name: slice}`. The values are one output, whose first dimension is the rows.

Numbers can be JSON or binary (KServe's binary tensor data extension), in both directions. A binary BYTES
element is a str if it is UTF-8, as it is in JSON, and bytes otherwise.
"""

import struct
from itertools import chain
from math import prod
from typing import NamedTuple

from kdeploy_values import plain, write_json

MAX_DIMENSIONS = 64  # numpy's limit
HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON before the binary data

_INTEGERS = {f"{sign}INT{bits}": {int} for sign in ("", "U") for bits in (8, 16, 32, 64)}
_FLOATS = {datatype: {int, float} for datatype in ("FP16", "BF16", "FP32", "FP64")}
DATATYPES = {"BOOL": {bool}, "BYTES": {str, bytes}, **_INTEGERS, **_FLOATS}

_NUMPY = {"bool": "BOOL", "bfloat16": "BF16", **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)}}
_NUMPY.update((datatype.lower(), datatype) for datatype in _INTEGERS)
_CODES = {"BOOL": "?", "BF16": "H", "FP16": "e", "FP32": "f", "FP64": "d", "INT8": "b", "UINT8": "B"}
_CODES.update(INT16="h", UINT16="H", INT32="i", UINT32="I", INT64="q", UINT64="Q")


class BadRequestError(ValueError):
    """The body of a V1 or V2 request is invalid. The message is for the client."""


class Tensor(NamedTuple):
    """One input: its name, the sizes of its dimensions, its datatype, its values in row-major order."""

    name: str
    shape: list
    datatype: str
    values: list
    parameters: object


class Rows(NamedTuple):
    """The rows of a request, and `keys(row)`: what the row with this number has besides its own keys.

    `whole`: the rows are one call. `outputs`: the names of V2's outputs. `flat`: each value is an output.
    """

    values: list
    keys: object
    outputs: list = ()
    whole: bool = False
    flat: bool = False


def is_v2(body):
    """Return whether an object is V2: an input has a shape, a datatype or data. Others can be anything."""
    inputs = body.get("inputs")
    return isinstance(inputs, list) and any(
        isinstance(tensor, dict) and not {"shape", "datatype", "data"}.isdisjoint(tensor) for tensor in inputs
    )


def read_v2(body, binary, v2_rows):
    """Return the rows of a V2 body. `binary`: the bytes after it, or None. Raises BadRequestError."""
    tensors = _read_tensors(body["inputs"], binary)
    keys = {"parameters": body["parameters"]} if "parameters" in body else {}
    if v2_rows == "first-dimension":
        return _slices(tensors, keys)
    return _whole_tensors(tensors, keys)


def _whole_tensors(tensors, keys):
    """Return a row for each input, or for each string of an only one."""
    names = [tensor.name for tensor in tensors]
    keys = [{**keys, **_own_keys(tensor)} for tensor in tensors]
    if len(tensors) > 1:
        return Rows([_value(tensor) for tensor in tensors], keys.__getitem__, names, whole=True, flat=True)
    [tensor] = tensors
    is_split = tensor.datatype == "BYTES" or not tensor.values
    values = tensor.values if is_split else [_value(tensor)]
    return Rows(values, lambda _: keys[0], names, flat=len(values) == 1)


def _value(tensor):
    if tensor.datatype == "BYTES" and len(tensor.values) == 1:
        return tensor.values[0]
    return _nested(tensor.values, tensor.shape)


def _slices(tensors, keys):
    """Return a row for each slice along the first dimension. A slice with one string is the string."""
    lengths = {tensor.shape[0] if tensor.shape else None for tensor in tensors}
    if len(lengths) != 1 or None in lengths:
        found = ", ".join(str(tensor.shape) for tensor in tensors)
        raise BadRequestError(f'"inputs" need the same first dimension (the batch), the shapes are {found}')
    slices = {}
    for tensor in tensors:
        one_string = tensor.datatype == "BYTES" and prod(tensor.shape[1:]) == 1
        slices[tensor.name] = tensor.values if one_string else _nested(tensor.values, tensor.shape)
    if len(tensors) == 1:
        [(name, values)] = slices.items()
        keys = {**keys, **_own_keys(tensors[0])}
    else:
        name = "output-0"
        values = [{name: rows[row] for name, rows in slices.items()} for row in range(*lengths)]
    return Rows(values, lambda _: keys, [name])


def _own_keys(tensor):
    keys = {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype}
    return keys if tensor.parameters is None else {**keys, "parameters": tensor.parameters}


# ---- reading


def _read_tensors(inputs, binary):
    """Read the inputs, and their binary data if there is some. Raises BadRequestError."""
    tensors, position = [], 0
    for number, tensor in enumerate(inputs):
        where = f"inputs[{number}]"
        if not isinstance(tensor, dict):
            raise BadRequestError(f"{where} must be an object with name, shape, datatype and data")
        name, datatype = tensor.get("name"), tensor.get("datatype")
        if not isinstance(name, str) or name in [other.name for other in tensors]:
            raise BadRequestError(f"{where} needs a unique name, a string")
        if not (isinstance(datatype, str) and datatype in DATATYPES):
            raise BadRequestError(f"{where}: datatype must be one of {', '.join(DATATYPES)}")
        parameters = tensor.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is not None and binary is not None:
            if type(size) is not int or not 0 <= size <= len(binary) - position:
                raise BadRequestError(f"{where}: binary_data_size is not within the body")
            data = _decode(where, datatype, bytes(binary[position : position + size]))
            position += size
        else:
            data = tensor.get("data")
        shape, values = _shaped(where, tensor.get("shape"), datatype, data)
        tensors.append(Tensor(name, shape, datatype, values, parameters))
    if position != len(binary or b""):
        raise BadRequestError(f"the body has {len(binary) - position} bytes after its binary data")
    return tensors


def _shaped(where, shape, datatype, data):
    """Return a tensor's shape, and its values in row-major order. Raises BadRequestError."""
    sizes = _sizes(where, shape)
    if datatype == "BYTES" and isinstance(data, str):
        data = [data]  # as KServe's own samples
    if not isinstance(data, list):
        raise BadRequestError(f"{where}: data must be a list")
    values, nested = _flattened(where, data)
    known = prod(size for size in sizes if size >= 0)
    if -1 in sizes and known and len(values) % known == 0:
        sizes[sizes.index(-1)] = len(values) // known
    # One-sized dimensions do not move a value.
    fits = len(nested) == 1 or [n for n in nested if n != 1] == [n for n in sizes if n != 1]
    if len(values) != prod(sizes) or not fits:
        raise BadRequestError(f"{where}: data must be the values of shape {shape}, flat or nested")
    if not set(map(type, values)) <= DATATYPES[datatype]:
        raise BadRequestError(f"{where}: data has a value that is not {datatype}")
    return sizes, values


def _sizes(where, shape):
    """Return a shape as a list; one size can be unknown: -1. Raises BadRequestError."""
    sizes = [shape] if type(shape) is int else shape
    if not isinstance(sizes, list) or len(sizes) > MAX_DIMENSIONS or set(map(type, sizes)) - {int}:
        raise BadRequestError(f"{where}: shape must be a list of whole numbers")
    # Only the batch can be empty: [10**12, 0] would otherwise have that many empty slices.
    if any(size < -1 or (size == 0 and place) for place, size in enumerate(sizes)) or sizes.count(-1) > 1:
        raise BadRequestError(f"{where}: shape must have positive sizes, and -1 for an unknown one")
    return list(sizes)


def _flattened(where, data):
    """Return the values of an evenly nested list, and the sizes of its levels. Raises BadRequestError."""
    values, sizes = data, [len(data)]
    while values and isinstance(values[0], list):
        lengths = {len(value) if isinstance(value, list) else -1 for value in values}
        if len(lengths) > 1 or len(sizes) == MAX_DIMENSIONS:
            raise BadRequestError(f"{where}: data is not nested evenly")
        sizes.append(*lengths)
        values = list(chain.from_iterable(values))
    return values, sizes


def _nested(values, shape):
    """Return values in row-major order, nested by their shape."""
    if not shape:
        return values[0]
    for size in reversed(shape[1:]):
        values = [values[start : start + size] for start in range(0, len(values), size)]
    return values


def _decode(where, datatype, data):
    """Return the values of binary data: little-endian, and BYTES with a length of 4 bytes before each."""
    if datatype == "BYTES":
        return _decode_strings(where, data)
    size = struct.calcsize("<" + _CODES[datatype])
    count, rest = divmod(len(data), size)
    if rest:
        raise BadRequestError(f"{where}: binary_data_size is not a multiple of {datatype}'s {size} bytes")
    values = struct.unpack(f"<{count}{_CODES[datatype]}", data)
    if datatype == "BF16":  # the upper half of FP32
        values = struct.unpack(f"<{count}f", struct.pack(f"<{count}I", *(value << 16 for value in values)))
    return list(values)


def _decode_strings(where, data):
    values, position = [], 0
    while position < len(data):
        start = position + 4
        position = start + int.from_bytes(data[position:start], "little")
        if position > len(data):
            raise BadRequestError(f"{where}: a binary string is longer than binary_data_size")
        values.append(_text_or_bytes(data[start:position]))
    return values


def _text_or_bytes(data):
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


# ---- writing


def write_v2(body, rows, values, model):
    """Return the answer for the rows' values, and the bytes of JSON in it if binary data follows, else 0.

    `model` is its name and version.
    """
    named = [_tensor([value], flat=True) for value in values] if rows.flat else [_tensor(values, flat=False)]
    asked = body.get("outputs")
    asked = [output for output in asked if isinstance(output, dict)] if isinstance(asked, list) else []
    whole = _parameters(body).get("binary_data_output") is True
    outputs, tail = [], b""
    for number, (datatype, shape, data) in enumerate(named):
        wish = asked[number] if number < len(asked) else {}
        name = wish.get("name")
        name = name if isinstance(name, str) else rows.outputs[number]
        output = {"name": name, "shape": shape, "datatype": datatype}
        if _parameters(wish).get("binary_data", whole) is True:
            encoded = _encode(datatype, data)
            tail += encoded
            outputs.append({**output, "parameters": {"binary_data_size": len(encoded)}})
        else:
            outputs.append({**output, "data": data})
    name, version = model
    answer = {"model_name": name, "model_version": version}
    if body.get("id") is not None:
        answer["id"] = body["id"]
    text = write_json({**answer, "outputs": outputs}).encode()
    is_binary = any("data" not in output for output in outputs)
    return text + tail, len(text) if is_binary else 0


def _parameters(owner):
    parameters = owner.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _tensor(values, flat):
    """Return datatype, shape and data: a tensor if the values nest evenly, else one JSON string per value.

    `flat`: the only value, as a tensor of one dimension.
    """
    declared = {_NUMPY.get(str(getattr(value, "dtype", "")).replace("torch.", "")) for value in values}
    rows = plain(values)
    shape, data = [len(rows)], rows
    while data and all(isinstance(value, list) for value in data) and len(set(map(len, data))) == 1:
        shape.append(len(data[0]))
        data = list(chain.from_iterable(data))
    if flat and rows == [[]]:
        return "FP64", [0], []  # as KServe's envelope
    datatype = _datatype(data, declared)
    if datatype is None:
        return "BYTES", shape[:1], [value if isinstance(value, str) else write_json(value) for value in rows]
    return datatype, [len(data)] if flat else shape, data


def _datatype(data, declared):
    """Return the datatype of the values: numpy's or torch's, else the one for Python's; None if mixed."""
    kinds = set(map(type, data))
    if len(declared) == 1 and None not in declared and kinds and kinds <= {bool, int, float}:
        return next(iter(declared))
    if kinds == {int}:
        return "INT64" if min(data) >= -(2**63) and max(data) < 2**63 else None
    for datatype, kind in (("BOOL", [{bool}]), ("FP64", [{float}, {int, float}]), ("BYTES", [{str}])):
        if kinds in kind:
            return datatype
    return None


def _encode(datatype, data):
    """Return values as binary data."""
    if datatype == "BYTES":
        encoded = [value.encode() for value in data]
        return b"".join(len(value).to_bytes(4, "little") + value for value in encoded)
    if datatype == "BF16":
        words = struct.unpack(f"<{len(data)}I", struct.pack(f"<{len(data)}f", *data))
        return struct.pack(f"<{len(data)}H", *(word >> 16 for word in words))
    return struct.pack(f"<{len(data)}{_CODES[datatype]}", *data)
