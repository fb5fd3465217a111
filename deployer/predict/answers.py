"""Decodes the responses of TorchServe's own path, V1 and V2. Pure."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import chain
from math import prod
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from deployer.errors import PredictError
from deployer.predict.codecs import Request
from deployer.predict.content import JSON

DEPTH = 100  # levels of lists and objects in a response

_HTML_STARTS = (b"<!doctype html", b"<html", b"<head")


def decode(request: Request, body: bytes, content_type: str = JSON) -> Any:
    """Return the prediction of a successful response, or those of all rows of a `whole` request.

    It is a JSON value, text, or bytes that are neither. Raises PredictError for a response that the protocol
    does not allow. JSON without V1's `predictions` or V2's `outputs` is the handler's own prediction.
    """
    if request.protocol in ("plain", "json"):
        return _own_answer(body, content_type)
    if body[:64].lstrip().lower().startswith(_HTML_STARTS):
        raise _page(body)
    try:
        document = _shallow(json.loads(body))
    except (ValueError, RecursionError) as error:
        raise _not_json(body) from error
    if not isinstance(document, dict):
        return document
    if request.protocol == "v1":
        key = "explanations" if "explanations" in document else "predictions"
        return _rows_of_v1(document[key], request) if key in document else document
    return _rows_of_v2(document["outputs"], request) if "outputs" in document else document


def _not_json(body: bytes) -> PredictError:
    start = body[:80].decode(errors="replace")
    if b'{"predictions"' in body or b'"outputs"' in body:
        what = f"the response is a stream of parts, not JSON: {start!r}"
        return PredictError(what, hint="The handler streams its answer: add `--protocol plain`.")
    return PredictError(
        f"the response is not JSON: {start!r}", hint="Run `kdeploy status` and compare the URL."
    )


def _malformed(what: str) -> PredictError:
    return PredictError(what, hint="Let the handler's postprocess return one prediction per row.")


def _own_answer(body: bytes, content_type: str) -> Any:
    """Read what a handler returned: JSON, text or bytes. TorchServe sets no content type by itself."""
    if "html" in content_type.lower():  # without one, it is an answer: every proxy and login page has one
        raise _page(body)
    with suppress(ValueError, RecursionError):
        return _shallow(json.loads(body))
    with suppress(UnicodeDecodeError):
        return body.decode()
    return body


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


def _page(body: bytes) -> PredictError:
    login = any(word in body[:20_000].lower() for word in (b"login", b"log in", b"sign in"))
    return PredictError(
        f"the response is a {'login' if login else 'web'} page, not a prediction",
        hint="Pass the credentials of the proxy in front of the model with `--header`, or compare the URL "
        "with that of `kdeploy status`.",
    )


def _rows_of_v1(values: Any, request: Request) -> Any:
    """Return the only value of a row, else the answer as the handler wrote it, in any form."""
    single = not request.whole and isinstance(values, list) and len(values) == 1
    return values[0] if single else values


class _Tensor(Struct):
    name: str
    shape: list[Annotated[int, Meta(ge=0)]]
    data: list[Any]  # flat, or nested by the shape
    datatype: Any = None


def _rows_of_v2(outputs: Any, request: Request) -> Any:
    """Return the only output tensor, or several by name; for one row without the first dimension."""
    try:
        found = msgspec.convert(outputs, Annotated[list[_Tensor], Meta(min_length=1)])
    except (msgspec.ValidationError, RecursionError) as error:
        raise _malformed(f'"outputs" must be a list of tensors: {error}') from error
    tensors = {tensor.name: _nested(tensor) for tensor in found}
    single = not request.whole and all(
        isinstance(value, list) and len(value) == 1 for value in tensors.values()
    )
    values = {name: value[0] if single else value for name, value in tensors.items()}
    return values if len(values) > 1 else next(iter(values.values()))


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
