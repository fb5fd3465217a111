"""Reads requests as rows for the user's handler, and writes the handler's values as answers.

The body of a request decides its protocol, not the URL:

* A JSON object with `instances` is V1. Each instance is a row. The answer is `{"predictions": [...]}`.
* A JSON object whose `inputs` is a list of objects is V2. Each slice of a tensor along its first dimension is
  a row. With several tensors, a row is `{name: slice}`.
* Any other body (raw bytes, form fields, other JSON) is one row, in TorchServe's form. The answer is the
  handler's value.

A handler can read a row of V1 or V2 in each of the common ways. The row is the instance or slice itself (a
dict, list or string), and its own `body`; a list or string is also its own `data`. So `row["data"]`,
`row["body"]["data"]`, `row.get("data") or row.get("body")` and `torch.as_tensor(rows)` return the value. A
number, true, false or null cannot have keys, so its row is `{"data": value, "body": value}`.
"""

import base64
import io
import json
import logging
import pickle
import sys
from itertools import chain
from math import prod

MAX_DIMENSIONS = 64  # numpy's limit

_INTEGERS = {f"{sign}INT{bits}": {int} for sign in ("", "U") for bits in (8, 16, 32, 64)}
_FLOATS = {datatype: {int, float} for datatype in ("FP16", "BF16", "FP32", "FP64")}
DATATYPES = {"BOOL": {bool}, "BYTES": {str}, **_INTEGERS, **_FLOATS}
_CONSTANT = {str, int, float, bool, type(None)}

logger = logging.getLogger("kdeploy_handler")


class BadRequestError(ValueError):
    """The body of a V1 or V2 request is invalid. The message is for the client."""


class Request:
    """One request of a batch: its rows, and how to write their values."""

    def __init__(self, index, rows, write=None, separate=False, failure=None):
        self.index = index
        self.rows = rows
        self.write = write  # values -> JSON; None: the only value is the answer
        self.separate = separate  # whether each row needs its own call
        self.failure = failure  # (status, {"error": message, ...})
        self.values = []
        self._copies = None

    def keep_copies(self):
        """Copy the rows, so that `take` can return them again. False if they are nested too deeply."""
        try:
            self._copies = [row if _is_flat(row) else pickle.dumps(row, -1) for row in self.rows]
        except RecursionError:
            return False
        return True

    def take(self, number, again=False):
        """Return a row for one call, which can change it. `again`: as it was before the first call."""
        row = self._copies[number] if again else self.rows[number]
        if type(row) is bytes:  # a pickled copy: rows of TorchServe and of JSON are never bytes
            row = pickle.loads(row)  # noqa: S301
        return make_row(row) if self.write else dict(row)

    def fail(self, status, message, number):
        """Let the request fail, with a message for the client about row `number`."""
        self.failure = status, {"error": message, "row": number}


def _is_flat(row):
    """Return whether a row holds only constants: `take` copies the row itself in any case."""
    values = row.values() if type(row) is dict else row if type(row) is list else [row]
    return _CONSTANT.issuperset(map(type, values))


class _Object(dict):
    """An object that is its own `body`. Its keys, length and iteration do not contain `body`."""

    def __missing__(self, key):
        if key == "body":
            return self
        raise KeyError(key)

    def __contains__(self, key):
        return key == "body" or super().__contains__(key)

    def get(self, key, default=None):
        return super().get(key, self if key == "body" else default)


class _Bare:
    """Makes a row that is not an object its own `data` and `body`."""

    def __getitem__(self, key):
        return self if isinstance(key, str) and key in ("data", "body") else super().__getitem__(key)

    def get(self, key, default=None):
        return self if key in ("data", "body") else default


class _List(_Bare, list): ...


class _Text(_Bare, str): ...


_ROW_TYPES = {dict: _Object, list: _List, str: _Text}


def make_row(value):
    """Return the row of one instance or slice, readable in each of the ways in the module's docstring."""
    row_type = _ROW_TYPES.get(type(value))
    return row_type(value) if row_type else _Object(data=value, body=value)


def read_request(index, row, context):
    """Read one request of TorchServe's batch. An invalid one is returned as failed, without rows."""
    # TorchServe's handlers read both headers only at row 0, and apply them to the whole call.
    explain = context.get_request_header(index, "explain") == "True"
    separate = explain or context.get_request_header(index, "describe") == "True"
    try:
        body = _protocol_body(row)
        if body is None:
            return Request(index, [row], separate=separate)
        rows, write = _read_v1(body, explain) if "instances" in body else _read_v2(body, context)
        return Request(index, rows, write, separate)
    except BadRequestError as error:
        return Request(index, [], failure=(400, {"error": str(error)}))
    except Exception as error:  # unexpected; only this request fails
        logger.warning("Cannot read a request", exc_info=True)
        return Request(index, [], failure=(500, {"error": f"cannot read the request: {error!r}"}))


def _protocol_body(row):
    """Return the body of a request if it is a V1 or V2 object, else None."""
    # TorchServe parses a body only if its type is exactly application/json. With gRPC, it is in `data`.
    body = row.get("data") if row.get("body") is None else row["body"]
    if isinstance(body, (bytes, bytearray, str)):
        body = _parse(body)
    if not isinstance(body, dict):
        return None
    inputs = body.get("inputs")
    is_v2 = isinstance(inputs, list) and all(isinstance(tensor, dict) for tensor in inputs)
    return body if is_v2 or "instances" in body else None


def _parse(body):
    """Return a JSON object with our keys, or None. The first bytes tell it from an image."""
    body = body.encode(errors="surrogatepass") if isinstance(body, str) else body
    if body[:64].lstrip()[:1] != b"{" or not (b'"instances"' in body or b'"inputs"' in body):
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"invalid JSON in the body: {error}") from error


def _read_v1(body, explain):
    """Return the rows of a V1 request, and the function that writes its answer."""
    if not isinstance(body["instances"], list):
        raise BadRequestError('"instances" must be a list')
    key = "explanations" if explain else "predictions"
    return body["instances"], lambda values: write_json({key: values})


def _read_v2(body, context):
    """Return the rows of a V2 request, and the function that writes its answer."""
    rows, name = _rows_of_v2(body["inputs"])
    return rows, lambda values: _write_v2(context, body, name, values)


def _rows_of_v2(tensors):
    """Return the rows of a V2 request, and its output's name: the input's, or output-0 for several."""
    slices = {}
    for position, tensor in enumerate(tensors):
        name = tensor.get("name")
        if not isinstance(name, str) or name in slices:
            raise BadRequestError(f"inputs[{position}] needs a unique name, a string")
        slices[name] = _slices(f"inputs[{position}]", tensor)
    lengths = {len(values) for values in slices.values()}
    if len(lengths) != 1:
        raise BadRequestError(f'"inputs" have different first dimensions (the batch): {sorted(lengths)}')
    if len(slices) == 1:
        return slices[name], name
    return [{name: values[row] for name, values in slices.items()} for row in range(*lengths)], "output-0"


def _slices(where, tensor):
    """Return the slices of a tensor along its first dimension. A slice with one string is the string."""
    shape, datatype = tensor.get("shape"), tensor.get("datatype")
    if not (isinstance(datatype, str) and datatype in DATATYPES):
        raise BadRequestError(f"{where}: datatype must be one of {', '.join(DATATYPES)}")
    sizes = shape if isinstance(shape, list) and 0 < len(shape) <= MAX_DIMENSIONS else [None]
    # Only the batch can be empty: [10**12, 0] would otherwise have that many empty slices.
    if not all(type(size) is int and size >= (place > 0) for place, size in enumerate(sizes)):
        raise BadRequestError(f"{where}: shape must be a list of whole numbers, starting with the batch")
    values = _row_major(where, tensor.get("data"), shape)
    if not set(map(type, values)) <= DATATYPES[datatype]:
        raise BadRequestError(f"{where}: data has a value that is not {datatype}")
    if datatype == "BYTES" and prod(shape[1:]) == 1:
        return values
    for size in reversed(shape[1:]):
        values = [values[start : start + size] for start in range(0, len(values), size)]
    return values


def _row_major(where, data, shape):
    """Return the values of `data`, which is flat, or nested according to `shape`."""
    nested = isinstance(data, list) and any(isinstance(value, list) for value in data[:1])
    values = [data]
    for size in shape if nested else [prod(shape)]:
        if not all(isinstance(value, list) and len(value) == size for value in values):
            raise BadRequestError(f"{where}: data must be the values of shape {shape}, flat or nested")
        values = list(chain.from_iterable(values))
    return values


def write_value(value):
    """Return a handler's value as the bytes that TorchServe sends. Raises TypeError or ValueError."""
    torch = sys.modules.get("torch")
    if torch and isinstance(value, torch.Tensor):
        stream = io.BytesIO()
        torch.save(value, stream)
        return stream.getvalue()
    if isinstance(value, (bytes, bytearray)):
        return value
    return (value if isinstance(value, str) else json.dumps(value, indent=2)).encode()


def _write_v2(context, body, name, values):
    datatype, shape, data = _tensor(json.loads(json.dumps(values, default=_leaf)))
    version = context.manifest["model"].get("modelVersion")
    answer = {"model_name": context.model_name, "model_version": version}
    if body.get("id") is not None:
        answer["id"] = body["id"]
    answer["outputs"] = [{"name": name, "shape": shape, "datatype": datatype, "data": data}]
    return write_json(answer)


def _tensor(values):
    """Return datatype, shape and data: a tensor if the values nest evenly, else one JSON string per value."""
    shape, flat = [len(values)], values
    while flat and all(isinstance(value, list) for value in flat) and len(set(map(len, flat))) == 1:
        shape.append(len(flat[0]))
        flat = list(chain.from_iterable(flat))
    kinds = set(map(type, flat))
    if kinds == {int} and min(flat) >= -(2**63) and max(flat) < 2**63:
        return "INT64", shape, flat
    for datatype, kind in (("BOOL", [{bool}]), ("FP64", [{float}, {int, float}]), ("BYTES", [{str}])):
        if kinds in kind:
            return datatype, shape, flat
    return "BYTES", shape[:1], [value if isinstance(value, str) else write_json(value) for value in values]


def write_json(value):
    """Return standard JSON. NaN and infinities, which JSON does not have, become null."""
    try:
        return json.dumps(value, default=_leaf, allow_nan=False)
    except ValueError:
        return json.dumps(json.loads(json.dumps(value, default=_leaf), parse_constant=lambda _: None))


def _leaf(value):
    """Return the JSON value of bytes, or of a value of numpy or torch, without importing either."""
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode("ascii")
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"no JSON for {type(value).__name__}")
