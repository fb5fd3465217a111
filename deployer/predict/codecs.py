"""Encodes requests and decodes responses of TorchServe's own path, V1 and V2. Pure.

| protocol | path | body for a file |
|---|---|---|
| plain | `/predictions/NAME` | its bytes |
| v1 | `/v1/models/NAME:predict` | `{"instances":[{"data":"<base64>"}]}` |
| v2 | `/v2/models/NAME/infer` | one BYTES tensor of a base64 string, shape `[1]` |

A JSON file is sent unchanged on the plain path, and if it is a request of the protocol (`instances`,
`inputs`). Any other becomes one instance of V1, or bytes in V2, which has no tensor of objects. The size of a
request is known before it is encoded.
"""

from __future__ import annotations

import base64
import json
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
DEPTH = 100  # levels of lists and objects in a response

_FRAMES = {
    "plain": (b"", b""),
    "v1": (b'{"instances":[{"data":"', b'"}]}'),
    "v2": (b'{"inputs":[{"name":"input-0","shape":[1],"datatype":"BYTES","data":["', b'"]}]}'),
}
_HTML_STARTS = (b"<!doctype", b"<html", b"<head", b"<?xml")


class Request(Struct, frozen=True):
    """One POST. The response must have `rows` predictions; `whole` if the file itself is the request."""

    protocol: Protocol
    path: str
    body: bytes
    content_type: str
    rows: int = 1
    whole: bool = False


def request_path(protocol: Protocol, model: str) -> str:
    """Return the path of the model's predictions at the endpoint."""
    model = quote(model, safe="")
    return {
        "plain": f"/predictions/{model}",
        "v1": f"/v1/models/{model}:predict",
        "v2": f"/v2/models/{model}/infer",
    }[protocol]


def request_size(protocol: Protocol, size: int) -> int:
    """Return the bytes of the request body for a file of `size` bytes that is not JSON."""
    head, tail = _FRAMES[protocol]
    return size if protocol == "plain" else len(head) + 4 * -(-size // 3) + len(tail)


def encode(protocol: Protocol, model: str, data: bytes, content_type: str = BYTES) -> Request:
    """Encode the request for the bytes of one file.

    Raises PredictError for invalid JSON, and for `instances` or `inputs` that are not a list.
    """
    path = request_path(protocol, model)
    if content_type == JSON:
        text, document = read_json(data)
        rows = 1 if protocol == "plain" else _own_rows(protocol, document)
        if rows is not None:
            return Request(protocol, path, text, JSON, rows, whole=protocol != "plain")
        if protocol == "v1":
            return Request(protocol, path, b'{"instances":[' + text + b"]}", JSON)
    if protocol == "plain":
        return Request(protocol, path, data, content_type)
    head, tail = _FRAMES[protocol]
    return Request(protocol, path, head + base64.b64encode(data) + tail, JSON)


def read_json(data: bytes) -> tuple[bytes, Any]:
    """Return a JSON file as UTF-8 without a byte order mark, and its value. Raises PredictError."""
    try:
        text = data.decode(json.detect_encoding(data))
        return text.encode(), json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PredictError(
            f"invalid JSON: {error}",
            hint="Correct the file. To send its bytes, rename it so that its name does not end in .json.",
        ) from error


def _own_rows(protocol: Protocol, document: Any) -> int | None:
    """Return the rows of a file that is a request of the protocol, else None."""
    key = "instances" if protocol == "v1" else "inputs"
    if not isinstance(document, dict) or key not in document:
        return None
    rows = document[key]
    if not isinstance(rows, list):
        raise PredictError(f'"{key}" must be a list', hint=f'Write {{"{key}": [...]}}.')
    if protocol == "v1":
        return len(rows)
    match rows:
        case [{"shape": [int(first), *_]}, *_]:
            return first
    raise PredictError(
        '"inputs" must be tensors, each with a shape', hint="Set each shape: its first number is the batch."
    )


def decode(request: Request, body: bytes, content_type: str = JSON) -> list[Any]:
    """Return the predictions of a successful response, one per row, in order.

    Raises PredictError for a response that the protocol does not allow. JSON without V1's `predictions` or
    V2's `outputs` is the prediction if the request has one row.
    """
    if request.protocol == "plain":
        return [_own_answer(body, content_type)]
    if _is_page(body, ""):
        raise _page(body)
    try:
        document = _shallow(json.loads(body))
    except (ValueError, RecursionError) as error:
        start = body[:80].decode(errors="replace")
        raise PredictError(
            f"the response is not JSON: {start!r}", hint="Run `kdeploy status` and compare the URL."
        ) from error
    key, read = ("predictions", _rows_of_v1) if request.protocol == "v1" else ("outputs", _rows_of_v2)
    if isinstance(document, dict) and key in document:
        return read(document[key], request.rows)
    if request.rows == 1:
        return [document]
    raise _malformed(f'the response to {request.rows} rows has no "{key}"')


def _malformed(what: str) -> PredictError:
    return PredictError(what, hint="Let the handler's postprocess return one prediction per row.")


def _own_answer(body: bytes, content_type: str) -> Any:
    """Read what a handler returned: JSON or text. TorchServe sets no content type by itself."""
    if _is_page(body, content_type):
        raise _page(body)
    try:
        return _shallow(json.loads(body))
    except (ValueError, RecursionError):
        pass
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise PredictError(
            f"the response has {len(body)} bytes that are neither JSON nor text",
            hint="Let the handler return JSON, or download the bytes with curl.",
        ) from error


def _shallow(root: Any) -> Any:
    """Return a value. Raises PredictError if it is nested too deeply to be printed."""
    level = [root]
    for _ in range(DEPTH + 1):
        level = [value for value in level if isinstance(value, dict | list)]
        if not level:
            return root
        level = [*chain.from_iterable(v.values() if isinstance(v, dict) else v for v in level)]
    raise PredictError(
        f"the response is nested more than {DEPTH} levels deep", hint="Let the handler return less."
    )


def _is_page(body: bytes, content_type: str) -> bool:
    return "html" in content_type.lower() or body[:64].lstrip().lower().startswith(_HTML_STARTS)


def _page(body: bytes) -> PredictError:
    login = any(word in body[:20_000].lower() for word in (b"login", b"log in", b"sign in"))
    return PredictError(
        f"the response is a {'login' if login else 'web'} page, not a prediction",
        hint="Pass the credentials of the proxy in front of the model with `--header`, or compare the URL "
        "with that of `kdeploy status`.",
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
    data: list[Any]  # flat, or nested by the shape
    datatype: Any = None


def _rows_of_v2(outputs: Any, rows: int) -> list[Any]:
    """Split the output tensors along their first dimension; each row of several is an object by name."""
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
        raise _malformed(f'"outputs" have {counts} rows, the request has {rows}')
    return slices if len(tensors) > 1 else [value for row in slices for value in row.values()]


def _nested(tensor: _Tensor) -> Any:
    """Return a tensor's data, nested by its shape."""
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
    if not values:  # a hostile shape [10**12, 0] would need that many empty lists
        return []
    for size in reversed(shape[1:]):
        values = [values[start : start + size] for start in range(0, len(values), size)]
    return values


def _object(value: Any) -> Any:
    """Return the object or list that a BYTES string encodes as JSON, else the string."""
    if not isinstance(value, str) or value[:1] not in ("{", "["):
        return value
    try:
        return _shallow(json.loads(value))
    except (ValueError, RecursionError):
        return value
