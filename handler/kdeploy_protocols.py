"""Reads requests as rows for the model's handler, and writes the handler's values as answers.

The request's body decides its protocol, not its URL:

* a JSON object with `instances`: KServe's V1. Each instance is a row; the answer is `{"predictions": [...]}`.
* a JSON object whose `inputs` is a list of objects: V2. Each slice of a tensor along its first dimension is
  a row; several tensors are cut side by side into rows `{name: slice}`.
* anything else (raw bytes, form fields, other JSON) is one row, as TorchServe has it, and the answer is the
  handler's own value.

A handler can read a row of V1 or V2 in each of the common ways. It is the instance or slice itself (a dict,
list or string), and its own `body`; a list or string is its own `data`, too. So `row["data"]`,
`row["body"]["data"]`, `row.get("data") or row.get("body")` and `torch.as_tensor(rows)` find the value. A
number, true, false or null, which cannot carry that, comes as `{"data": value, "body": value}`.
"""

import base64
import io
import json
import logging
import pickle
import sys
from itertools import chain
from math import prod

MAX_DIMENSIONS = 64  # as numpy has it

_INTEGERS = {f"{sign}INT{bits}": {int} for sign in ("", "U") for bits in (8, 16, 32, 64)}
_FLOATS = {datatype: {int, float} for datatype in ("FP16", "BF16", "FP32", "FP64")}
DATATYPES = {"BOOL": {bool}, "BYTES": {str}, **_INTEGERS, **_FLOATS}
_CONSTANT = {str, int, float, bool, type(None)}

logger = logging.getLogger("kdeploy_handler")


class BadRequestError(ValueError):
    """A body that claims to be V1 or V2 and is not: the client's mistake, in a sentence for the client."""


class Request:
    """One request of a batch: the rows that it brings, and how their values are written."""

    def __init__(self, index, rows, write=None, alone=False, failure=None):
        self.index = index
        self.rows = rows
        self.write = write  # values -> JSON; None: the one value is the answer
        self.alone = alone  # whether each of its rows needs a call of its own
        self.failure = failure  # (status, {"error": sentence, ...})
        self.values = []
        self._copies = None

    def keep_copies(self):
        """Copy the rows, so that `take` can give them again; False for what is nested too deeply for that."""
        try:
            self._copies = [row if _is_flat(row) else pickle.dumps(row, -1) for row in self.rows]
        except RecursionError:
            return False
        return True

    def take(self, number, again=False):
        """Return a row for one call, which may change it; `again`, as it was before the first."""
        row = self._copies[number] if again else self.rows[number]
        if type(row) is bytes:  # no row of TorchServe's or of JSON is
            row = pickle.loads(row)  # noqa: S301
        return make_row(row) if self.write else dict(row)

    def fail(self, status, sentence, number):
        """Let the request fail, with a sentence for the client about row `number`."""
        self.failure = status, {"error": sentence, "row": number}


def _is_flat(row):
    """Tell whether nobody can change a row but at its top, which `take` copies in any case."""
    values = row.values() if type(row) is dict else row if type(row) is list else [row]
    return _CONSTANT.issuperset(map(type, values))


class _Object(dict):
    """A row that is an object, and its own `body`; its keys, length and iteration know nothing of that."""

    def __missing__(self, key):
        if key == "body":
            return self
        raise KeyError(key)

    def __contains__(self, key):
        return key == "body" or super().__contains__(key)

    def get(self, key, default=None):
        return super().get(key, self if key == "body" else default)


class _Bare:
    """What makes a row that is no object its own `data` and `body`."""

    def __getitem__(self, key):
        return self if isinstance(key, str) and key in ("data", "body") else super().__getitem__(key)

    def get(self, key, default=None):
        return self if key in ("data", "body") else default


class _List(_Bare, list): ...


class _Text(_Bare, str): ...


_DRESS = {dict: _Object, list: _List, str: _Text}


def make_row(value):
    """Dress one instance or slice so that it can be read in each of the ways that the module's text lists."""
    dress = _DRESS.get(type(value))
    return dress(value) if dress else _Object(data=value, body=value)


def read_request(index, row, context):
    """Read what TorchServe hands over for one request; a malformed one comes back failed, with no rows."""
    # Both headers switch the whole call of TorchServe's own handlers, which look for them at row 0 alone.
    explain = context.get_request_header(index, "explain") == "True"
    alone = explain or context.get_request_header(index, "describe") == "True"
    try:
        body = _protocol_body(row)
        if body is None:
            return Request(index, [row], alone=alone)
        rows, write = _read_v1(body, explain) if "instances" in body else _read_v2(body, context)
        return Request(index, rows, write, alone)
    except BadRequestError as error:
        return Request(index, [], failure=(400, {"error": str(error)}))
    except Exception as error:  # a surprise, and this request's alone
        logger.warning("A request cannot be read", exc_info=True)
        return Request(index, [], failure=(500, {"error": f"the request cannot be read: {error!r}"}))


def _protocol_body(row):
    """Return the V1 or V2 object that a request's body is, or None."""
    # TorchServe parses a body only if its type is exactly application/json, and gRPC brings it as `data`.
    body = row.get("data") if row.get("body") is None else row["body"]
    if isinstance(body, (bytes, bytearray, str)):
        body = _parse(body)
    if not isinstance(body, dict):
        return None
    inputs = body.get("inputs")
    is_v2 = isinstance(inputs, list) and all(isinstance(tensor, dict) for tensor in inputs)
    return body if is_v2 or "instances" in body else None


def _parse(body):
    """Parse what begins as an object and names our keys: an image is told from that by its first bytes."""
    body = body.encode(errors="surrogatepass") if isinstance(body, str) else body
    if body[:64].lstrip()[:1] != b"{" or not (b'"instances"' in body or b'"inputs"' in body):
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not valid JSON: {error}") from error


def _read_v1(body, explain):
    """Return the rows of a V1 request, and what writes its answer."""
    if not isinstance(body["instances"], list):
        raise BadRequestError('"instances" must be a list')
    key = "explanations" if explain else "predictions"
    return body["instances"], lambda values: write_json({key: values})


def _read_v2(body, context):
    """Return the rows of a V2 request, and what writes its answer."""
    rows, name = _rows_of_v2(body["inputs"])
    return rows, lambda values: _write_v2(context, body, name, values)


def _rows_of_v2(tensors):
    """Return the rows of a V2 request and its output's name: the input's, or output-0 for several."""
    slices = {}
    for position, tensor in enumerate(tensors):
        name = tensor.get("name")
        if not isinstance(name, str) or name in slices:
            raise BadRequestError(f"inputs[{position}] needs a name of its own, a string")
        slices[name] = _slices(f"inputs[{position}]", tensor)
    lengths = {len(values) for values in slices.values()}
    if len(lengths) != 1:
        raise BadRequestError(f'"inputs" must agree in the first dimension, the batch: {sorted(lengths)}')
    if len(slices) == 1:
        return slices[name], name
    return [{name: values[row] for name, values in slices.items()} for row in range(*lengths)], "output-0"


def _slices(where, tensor):
    """Cut a tensor along its first dimension; a slice that is one string stands for itself."""
    shape, datatype = tensor.get("shape"), tensor.get("datatype")
    if not (isinstance(datatype, str) and datatype in DATATYPES):
        raise BadRequestError(f"{where}: datatype must be one of {', '.join(DATATYPES)}")
    sizes = shape if isinstance(shape, list) and 0 < len(shape) <= MAX_DIMENSIONS else [None]
    # Only the batch may be empty: [10**12, 0] would otherwise ask for that many empty slices.
    if not all(type(size) is int and size >= (place > 0) for place, size in enumerate(sizes)):
        raise BadRequestError(f"{where}: shape must be a list of whole numbers, the first of them the batch")
    values = _row_major(where, tensor.get("data"), shape)
    if not set(map(type, values)) <= DATATYPES[datatype]:
        raise BadRequestError(f"{where}: data has a value that is no {datatype}")
    if datatype == "BYTES" and prod(shape[1:]) == 1:
        return values
    for size in reversed(shape[1:]):
        values = [values[start : start + size] for start in range(0, len(values), size)]
    return values


def _row_major(where, data, shape):
    """Return the values of `data`, which may be flat, or nested as `shape` says."""
    nested = isinstance(data, list) and any(isinstance(value, list) for value in data[:1])
    values = [data]
    for size in shape if nested else [prod(shape)]:
        if not all(isinstance(value, list) and len(value) == size for value in values):
            raise BadRequestError(f"{where}: data must be the values of shape {shape}, flat or nested")
        values = list(chain.from_iterable(values))
    return values


def write_value(value):
    """Return a handler's own value as the bytes that TorchServe sends. Raises TypeError or ValueError."""
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
    """Return datatype, shape and data: a tensor if the values nest evenly, else a string of JSON for each."""
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
    """Write JSON as its standard has it: NaN and infinities, which it has not, become null."""
    try:
        return json.dumps(value, default=_leaf, allow_nan=False)
    except ValueError:
        return json.dumps(json.loads(json.dumps(value, default=_leaf), parse_constant=lambda _: None))


def _leaf(value):
    """Return what JSON has for bytes, and for numpy's and torch's values without importing either."""
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode("ascii")
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
