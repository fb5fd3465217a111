"""Encodes requests and decodes answers of TorchServe's own path, V1 and V2. Pure.

| protocol | path | body of one file |
|---|---|---|
| plain | `/predictions/NAME` | its bytes |
| v1 | `/v1/models/NAME:predict` | `{"instances":[{"data":"<base64>"}]}` |
| v2 | `/v2/models/NAME/infer` | one BYTES tensor of base64 strings, shape `[n]` |

A file that is JSON goes as JSON: untouched where it already is a request of the protocol (`instances`,
`inputs`) or on the plain path, as one instance of V1, and in V2, which has no tensor of objects, as bytes.
The promise: the size of a request is known before a byte of it is made.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta, Struct

from deployer.errors import PredictError

Protocol = Literal["plain", "v1", "v2"]

JSON = "application/json"
BYTES = "application/octet-stream"
INPUT_NAME = "input-0"
DEPTH = 100  # levels of lists and objects in an answer

_HTML_STARTS = (b"<!doctype", b"<html", b"<head", b"<?xml")


class Payload(Struct, frozen=True):
    """The bytes of one file and their content type."""

    data: bytes
    content_type: str = BYTES


class Request(Struct, frozen=True):
    """One POST. `rows` predictions must come back; `whole` where the file itself was the request."""

    protocol: Protocol
    path: str
    body: bytes
    content_type: str
    rows: int = 1
    whole: bool = False


def request_path(protocol: Protocol, model: str) -> str:
    """Return the path of the model's predictions under the endpoint."""
    model = quote(model, safe="")
    return {
        "plain": f"/predictions/{model}",
        "v1": f"/v1/models/{model}:predict",
        "v2": f"/v2/models/{model}/infer",
    }[protocol]


def request_size(protocol: Protocol, *sizes: int) -> int:
    """Return the bytes of the request body that files of these sizes (bytes, not JSON) make."""
    if protocol == "plain":
        return sum(sizes)
    head, before, after, tail = _frame(protocol, len(sizes))
    rows = sum(4 * -(-size // 3) + len(before) + len(after) for size in sizes)
    return len(head) + rows + max(len(sizes) - 1, 0) + len(tail)


def encode(protocol: Protocol, model: str, payloads: Sequence[Payload]) -> Request:
    """Make the request for the files, in order; the plain path takes one file a request.

    Raises PredictError for invalid JSON, and for `instances` or `inputs` that are not a list.
    """
    path = request_path(protocol, model)
    if protocol == "plain":
        [payload] = payloads
        if payload.content_type == JSON:
            payload = Payload(read_json(payload.data)[0], JSON)
        return Request(protocol, path, payload.data, payload.content_type)
    if len(payloads) == 1 and payloads[0].content_type == JSON:
        text, document = read_json(payloads[0].data)
        rows = _own_rows(protocol, document)
        if rows is not None:
            return Request(protocol, path, text, JSON, rows, whole=True)
    head, _, _, tail = _frame(protocol, len(payloads))
    body = head + b",".join(_row(protocol, payload) for payload in payloads) + tail
    return Request(protocol, path, body, JSON, len(payloads))


def _frame(protocol: Protocol, rows: int) -> tuple[bytes, bytes, bytes, bytes]:
    """Return what stands before all rows, before and after each one's base64, and after all."""
    if protocol == "v1":
        return b'{"instances":[', b'{"data":"', b'"}', b"]}"
    head = f'{{"inputs":[{{"name":"{INPUT_NAME}","shape":[{rows}],"datatype":"BYTES","data":['
    return head.encode(), b'"', b'"', b"]}]}"


def _row(protocol: Protocol, payload: Payload) -> bytes:
    if protocol == "v1" and payload.content_type == JSON:
        return read_json(payload.data)[0]
    _, before, after, _ = _frame(protocol, 1)
    return before + base64.b64encode(payload.data) + after


def read_json(data: bytes) -> tuple[bytes, Any]:
    """Return a JSON file as UTF-8 without a byte order mark, and the value. Raises PredictError."""
    try:
        text = data.decode(json.detect_encoding(data))
        return text.encode(), json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PredictError(
            f"invalid JSON: {error}",
            hint="fix the file, or rename it so that it does not end in .json: then its bytes are sent",
        ) from error


def _own_rows(protocol: Protocol, document: Any) -> int | None:
    """Return the rows of a file that is a request of the protocol already; None if it is not."""
    key = "instances" if protocol == "v1" else "inputs"
    if not isinstance(document, dict) or key not in document:
        return None
    rows = document[key]
    if not isinstance(rows, list):
        raise PredictError(f'"{key}" must be a list', hint=f'write {{"{key}": [...]}}')
    if protocol == "v1":
        return len(rows)
    match rows:
        case [{"shape": [int(first), *_]}, *_]:
            return first
    raise PredictError('"inputs" must be tensors, each with a shape', hint="the first dimension is the batch")


def decode(request: Request, answer: bytes, content_type: str = JSON) -> list[Any]:
    """Return the predictions of a successful answer, one a row, in order.

    Raises PredictError for an answer that the protocol does not allow. A handler's own JSON in place of
    V1's `predictions`, or of V2's `outputs`, is the prediction where one row was asked for.
    """
    if request.protocol == "plain":
        return [_own_answer(answer, content_type)]
    document = _json_answer(answer)
    key, read = ("predictions", _rows_of_v1) if request.protocol == "v1" else ("outputs", _rows_of_v2)
    if isinstance(document, dict) and key in document:
        return read(document[key], request.rows)
    if request.rows == 1:
        return [document]
    raise _malformed(f'the answer to {request.rows} rows has no "{key}"')


def _malformed(what: str) -> PredictError:
    return PredictError(what, hint="the handler's postprocess must return one prediction for each row")


def _own_answer(answer: bytes, content_type: str) -> Any:
    """Read what a handler returned: JSON, else text; TorchServe names no content type by itself."""
    if _is_page(answer, content_type):
        raise _page(answer)
    try:
        return _shallow(json.loads(answer))
    except (ValueError, RecursionError):
        pass
    try:
        return answer.decode()
    except UnicodeDecodeError as error:
        raise PredictError(
            f"the answer is {len(answer)} bytes that are neither JSON nor text",
            hint="let the handler return JSON, or fetch the bytes with curl",
        ) from error


def _json_answer(answer: bytes) -> Any:
    if _is_page(answer, ""):
        raise _page(answer)
    try:
        return _shallow(json.loads(answer))
    except (ValueError, RecursionError) as error:
        start = answer[:80].decode(errors="replace")
        raise PredictError(
            f"the answer is not JSON: {start!r}",
            hint="check that the URL is the model's: kdeploy status",
        ) from error


def _shallow(root: Any) -> Any:
    """Return a value. Raises PredictError if it is nested too deeply to be printed."""
    level = [root]
    for _ in range(DEPTH):
        level = [child for value in level for child in _children(value) if isinstance(child, list | dict)]
        if not level:
            return root
    raise PredictError(
        f"the answer is nested more than {DEPTH} levels deep", hint="let the handler return less"
    )


def _children(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _is_page(answer: bytes, content_type: str) -> bool:
    return "html" in content_type.lower() or answer[:64].lstrip().lower().startswith(_HTML_STARTS)


def _page(answer: bytes) -> PredictError:
    login = any(word in answer[:20_000].lower() for word in (b"login", b"log in", b"sign in"))
    return PredictError(
        f"the answer is a {'login' if login else 'web'} page, not a prediction",
        hint="a proxy stands in front of the model: pass its credentials with --header, or use the model's "
        "own URL: kdeploy status",
    )


def _rows_of_v1(predictions: Any, rows: int) -> list[Any]:
    if not isinstance(predictions, list):
        raise _malformed(f'"predictions" must be a list, not {type(predictions).__name__}')
    if len(predictions) != rows:
        raise _malformed(f'"predictions" has {len(predictions)} entries for {rows} rows')
    return predictions


class _Tensor(Struct):
    name: str
    shape: list[Annotated[int, Meta(ge=0)]]
    data: list[Any]  # flat, or nested as the shape says
    datatype: Any = None


def _rows_of_v2(outputs: Any, rows: int) -> list[Any]:
    """Cut the output tensors along their first dimension; several are put together by name."""
    try:
        found = msgspec.convert(outputs, Annotated[list[_Tensor], Meta(min_length=1)])
    except (msgspec.ValidationError, RecursionError) as error:
        raise _malformed(f'"outputs" must be a list of tensors: {error}') from error
    tensors = {tensor.name: _nested(tensor) for tensor in found}
    if all(isinstance(tensor, list) and len(tensor) == rows for tensor in tensors.values()):
        slices = [dict(zip(tensors, row, strict=True)) for row in zip(*tensors.values(), strict=True)]
    elif rows == 1:
        slices = [tensors]
    else:
        counts = [len(tensor) if isinstance(tensor, list) else 1 for tensor in tensors.values()]
        raise _malformed(f'"outputs" have {counts} rows for {rows} of the request')
    return slices if len(tensors) > 1 else [value for row in slices for value in row.values()]


def _nested(tensor: _Tensor) -> Any:
    """Return a tensor's data, nested as its shape says."""
    values = tensor.data
    while values and all(isinstance(value, list) for value in values):
        values = list(chain.from_iterable(values))
    if len(values) != prod(tensor.shape):
        raise _malformed(
            f"{tensor.name}: shape {tensor.shape} needs {prod(tensor.shape)} values, data has {len(values)}"
        )
    if tensor.datatype == "BYTES":
        values = [_object(value) for value in values]
    return _nest(values, tensor.shape)


def _nest(values: list[Any], shape: list[int]) -> Any:
    if not shape:
        return values[0]
    if not values:  # a hostile [10**12, 0] would ask for that many empty lists
        return []
    for size in reversed(shape[1:]):
        values = [values[start : start + size] for start in range(0, len(values), size)]
    return values


def _object(value: Any) -> Any:
    """Return the object or list that a BYTES string holds as JSON; other strings are themselves."""
    if not isinstance(value, str) or value[:1] not in ("{", "["):
        return value
    try:
        return _shallow(json.loads(value))
    except (ValueError, RecursionError):
        return value
