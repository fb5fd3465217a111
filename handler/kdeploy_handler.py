"""The adapter between TorchServe and a model's own handler, packed into every model archive.

TorchServe hands over the requests of a batch as they arrived. This module reads them, asks the model's
handler once for all their rows, and gives every request its own answer in its own protocol. The request's
body decides, not the URL:

* a JSON object with `instances`: KServe's V1. Each instance is a row, answered by `{"predictions": [...]}`.
* a JSON object whose `inputs` is a list of objects: V2. Each slice of a tensor along its first dimension is
  a row; several tensors are cut side by side into rows `{name: slice}`.
* anything else (raw bytes, form fields, other JSON) is one row, TorchServe's own, and the answer is the
  handler's own value, untouched.

A row of V1 or V2 can be read in each of the ways in which handlers read rows. It is the instance or slice
itself (a dict, list or string), and its own `body`; a list or string is its own `data`, too. So
`row["data"]`, `row["body"]["data"]`, `row.get("data") or row.get("body")` and `torch.as_tensor(rows)` find
the value. A number, true, false or null, which cannot carry that, comes as `{"data": value, "body": value}`.

A failure belongs to its own request: 400 for an invalid V1 or V2, the code of a `PredictionException`, else
500, as `{"error": sentence, "row": index}`. Out of memory and CUDA errors are TorchServe's: 507 for all.
"""

import base64
import importlib
import inspect
import json
import logging
import sys
from itertools import chain
from math import prod
from pathlib import Path

SETTINGS = "kdeploy_handler.json"
MAX_DIMENSIONS = 64  # as numpy has it

_INTEGERS = {f"{sign}INT{bits}": {int} for sign in ("", "U") for bits in (8, 16, 32, 64)}
_FLOATS = {datatype: {int, float} for datatype in ("FP16", "BF16", "FP32", "FP64")}
DATATYPES = {"BOOL": {bool}, "BYTES": {str}, **_INTEGERS, **_FLOATS}

logger = logging.getLogger(__name__)


class BadRequestError(ValueError):
    """A body that claims to be V1 or V2 and is not: the client's mistake, in a sentence for the client."""


class WrongCountError(ValueError):
    """The handler did not give one answer for each row."""


class Adapter:
    """Asks one handler, `entry(data, context)`, for the rows of whole batches where it can take them."""

    def __init__(self, entry=None):
        self.entry = entry
        self.one_row = False
        self._warned = set()

    def answer(self, data, context):
        """Answer every request of a batch: a list as long as `data`."""
        if inspect.iscoroutinefunction(self.entry):
            return self.entry(data, context)  # asyncCommunication: TorchServe awaits it, and never batches
        requests = [read_request(index, row, context) for index, row in enumerate(data)]
        self._ask([request for request in requests if request.rows], context)
        return [write_answer(request, context) for request in requests]

    def _ask(self, requests, context):
        """Let every request have its values, or its failure."""
        together = [request for request in requests if not (request.alone or self.one_row)]
        error = self._ask_together(together, context)
        for request in requests:
            if not request.values:
                self._ask_singly(request, context)
        if error:
            self._learn(error, together)

    def _ask_together(self, requests, context):
        """Ask once for the rows of all; the error, if there is one, leaves every request as it was."""
        rows = [request.dress(row) for request in requests for row in request.rows]
        owners = [request.index for request in requests for _ in request.rows]
        if len(rows) < 2:
            return None
        try:
            answers = iter(self._call(rows, owners, context))
        except Exception as error:
            processors = [context.request_processor[request.index] for request in requests]
            # What has been streamed cannot be taken back and asked for again.
            if belongs_to_all(error) or any(one.get_response_header("ts_stream_next") for one in processors):
                raise
            for processor in processors:
                processor.report_status(200)
                processor.get_response_headers().clear()
            return error
        for request in requests:
            request.values = [next(answers) for _ in request.rows]
        return None

    def _ask_singly(self, request, context):
        """Ask for one row after the other; the first that fails fails its request."""
        try:
            for row in request.rows:
                request.values += self._call([request.dress(row)], [request.index], context)
        except Exception as error:
            if belongs_to_all(error):
                raise
            row = len(request.values)
            logger.warning("Row %d of a request failed", row, exc_info=True)
            status, sentence = status_and_sentence(error)
            request.failure = status, {"error": sentence, "row": row}

    def _call(self, rows, owners, context):
        """Ask the handler once; what it says of row i to the context goes to request `owners[i]`."""
        # The context is lent, not copied: handlers keep it, write attributes to it, ask for its class.
        ids, processors = context.request_ids, context.request_processor
        if owners != list(range(len(processors))):
            context.request_ids = {row: ids[owner] for row, owner in enumerate(owners)}
            context.request_processor = [processors[owner] for owner in owners]
        try:
            answers = self.entry(rows, context)
        finally:
            context.request_ids, context.request_processor = ids, processors
        if isinstance(answers, list) and len(answers) == len(rows):
            return answers
        given = f"a list of {len(answers)}" if isinstance(answers, list) else type(answers).__name__
        raise WrongCountError(f"the handler returned {given} for {len(rows)} row(s), not a list of as many")

    def _learn(self, error, requests):
        """Remember a handler that answered no batch but each of its rows alone; else say once what failed."""
        if isinstance(error, WrongCountError) and not any(request.failure for request in requests):
            self.one_row = True
            logger.warning("Batching gains nothing here, each row is asked alone from now on: %s", error)
        elif type(error) not in self._warned:
            self._warned.add(type(error))
            logger.warning("A batch failed, so each of its rows was asked alone", exc_info=error)


class Request:
    """One request of a batch: the rows that it brings, and how their values are written."""

    def __init__(self, index, rows, write=None, alone=False, failure=None):
        self.index = index
        self.rows = rows
        self.write = write  # values -> JSON; None: handed on as it is, and the one value is the answer
        self.alone = alone
        self.failure = failure  # (status, body)
        self.values = []

    def dress(self, row):
        """Return a row for one call: handlers write into their rows, and may be asked again."""
        if self.write:
            return make_row(row)
        return {key: dict(value) if type(value) is dict else value for key, value in row.items()}


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
        if "instances" in body:
            if not isinstance(body["instances"], list):
                raise BadRequestError('"instances" must be a list')
            key = "explanations" if explain else "predictions"
            return Request(index, body["instances"], lambda values: _json({key: values}), alone)
        rows, name = _rows_of_v2(body["inputs"])
        return Request(index, rows, lambda values: _write_v2(context, body, name, values), alone)
    except BadRequestError as error:
        return Request(index, [], failure=(400, {"error": str(error)}))


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
    body = body.encode() if isinstance(body, str) else body
    if body[:64].lstrip()[:1] != b"{" or not (b'"instances"' in body or b'"inputs"' in body):
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not valid JSON: {error}") from error


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


def write_answer(request, context):
    """Write a request's answer and status here, so that what cannot be written fails no other request."""
    if request.failure is None:
        try:
            if request.write is None:
                return _write_own(request.values[0], context)
            answer = request.write(request.values)
        except Exception as error:
            logger.warning("An answer cannot be written as JSON", exc_info=True)
            request.failure = 500, {"error": f"the handler's answer cannot be written as JSON: {error}"}
    if request.failure is not None:
        status, body = request.failure
        context.set_response_status(status, "", request.index)
        answer = _json(body)
    context.set_response_content_type(request.index, "application/json")
    return answer


def _write_own(value, context):
    """Return a handler's own value as TorchServe takes it, having made sure that it can."""
    torch = sys.modules.get("torch")  # TorchServe sends a tensor as torch.save writes it
    is_ready = isinstance(value, (bytes, bytearray)) or (torch and isinstance(value, torch.Tensor))
    if is_ready or getattr(context, "stopping_criteria", None):  # which ask for the value itself
        return value
    return value.encode() if isinstance(value, str) else json.dumps(value, indent=2)  # as TorchServe would


def _write_v2(context, body, name, values):
    datatype, shape, data = _tensor(json.loads(json.dumps(values, default=_leaf)))
    version = context.manifest["model"].get("modelVersion")
    answer = {"model_name": context.model_name, "model_version": version}
    if body.get("id") is not None:
        answer["id"] = body["id"]
    answer["outputs"] = [{"name": name, "shape": shape, "datatype": datatype, "data": data}]
    return _json(answer)


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
    return "BYTES", shape[:1], [value if isinstance(value, str) else _json(value) for value in values]


def _json(value):
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


def belongs_to_all(error):
    """Tell whether an error says that the worker is done for, as TorchServe tells it (507)."""
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "CUDA" in str(error)


def status_and_sentence(error):
    """Return the HTTP status and the sentence for the client whose row failed."""
    from ts.utils.util import PredictionException

    if isinstance(error, PredictionException):
        code = error.error_code
        return (code if type(code) is int and 400 <= code < 600 else 500), str(error.message)
    return 500, str(error) if isinstance(error, WrongCountError) else f"{type(error).__name__}: {error}"


def load_handler(context):
    """Import and initialise `file.py`, `file.py:function` or one of TorchServe's own; return its entry."""
    model_dir = Path(context.system_properties["model_dir"])
    handler = json.loads((model_dir / SETTINGS).read_text(encoding="utf-8"))["handler"]
    context.manifest["model"]["handler"] = handler
    name, _, function = handler.partition(":")
    stem = Path(name.removesuffix(".py")).name
    own = name.endswith(".py") or (model_dir / f"{stem}.py").is_file()
    module = importlib.import_module(stem if own else f"ts.torch_handler.{stem}")
    if function or hasattr(module, "handle"):
        entry = getattr(module, function or "handle")
        entry(None, context)
        return entry
    classes = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if hasattr(kind, "handle")]
    classes = [kind for kind in classes if kind.__module__ == module.__name__]
    if len(classes) != 1:
        raise ValueError(f"{handler} needs one class with a method handle, or a function, and has {classes}")
    service = classes[0]()
    entry = service.handle
    service.initialize(context)
    return entry


_adapter = Adapter()


def handle(data, context):
    """Be TorchServe's entry point: without data, which comes once and first, load; else answer a batch."""
    if data is None:  # what goes wrong there is raised as it is: the worker fails, its log has the reason
        _adapter.entry = load_handler(context)
        return None
    return _adapter.answer(data, context)
