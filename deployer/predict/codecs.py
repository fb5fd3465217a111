"""Encodes requests of TorchServe's own path, V1 and V2. Pure.

| protocol | path | body for an image |
|---|---|---|
| plain | `/predictions/NAME` | its bytes |
| json | `/predictions/NAME` | `{"data":"<base64>"}` |
| v1 | `/v1/models/NAME:predict` | `{"instances":[{"data":"<base64>"}]}` |
| v2 | `/v2/models/NAME/infer` | one BYTES tensor of a base64 string, shape `[1]` |
| grpc-v2 | `ModelInfer` | the same |

V1 and V2 have text in the place of base64. JSON is sent unchanged on the plain path, and if it is a request
of the protocol. Any other JSON becomes one instance of V1, or text in V2, which has no tensor of objects. The
size of a request for an image is known before it is encoded.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from typing import Any, Literal
from urllib.parse import quote

from msgspec import Struct

from deployer.errors import PredictError
from deployer.predict.content import BYTES, JSON, read_json

Protocol = Literal["plain", "json", "v1", "v2", "grpc-v2"]

_FRAMES = {
    "json": (b'{"data":', b"}"),
    "v1": (b'{"instances":[{"data":', b"}]}"),
    "v2": (b'{"inputs":[{"name":"input-0","shape":[1],"datatype":"BYTES","data":[', b"]}]}"),
}
_FRAMES["grpc-v2"] = _FRAMES["v2"]
_TENSOR = {"shape", "datatype", "data"}


class Request(Struct, frozen=True):
    """One POST. `whole` if the input itself is the request, which can have any number of rows."""

    protocol: Protocol
    path: str
    body: bytes
    content_type: str
    whole: bool = False


def request_path(protocol: Protocol, model: str, *, explain: bool = False) -> str:
    """Return the path of the model's predictions or explanations at the endpoint.

    Raises PredictError for explanations in gRPC, which does not have them.
    """
    if protocol == "grpc-v2":
        if explain:
            raise PredictError(
                "gRPC has no explanations", hint="Use `--protocol v1` or `--protocol v2` with `--explain`."
            )
        return "inference.GRPCInferenceService/ModelInfer"
    model = quote(model, safe="")
    if protocol == "v1":
        return f"/v1/models/{model}:{'explain' if explain else 'predict'}"
    if protocol == "v2":
        return f"/v2/models/{model}/{'explain' if explain else 'infer'}"
    return f"/{'explanations' if explain else 'predictions'}/{model}"


def request_size(protocol: Protocol, size: int) -> int:
    """Return the bytes of the request body for a file of `size` bytes that is neither JSON nor text."""
    if protocol == "plain":
        return size
    head, tail = _FRAMES[protocol]
    return len(head) + len('""') + 4 * -(-size // 3) + len(tail)


def own_protocol(data: bytes, content_type: str) -> Protocol | None:
    """Return the protocol of which an input is a request by itself, or None."""
    document = read_json(data)[1] if content_type == JSON else None
    if _is_v1(document):
        return "v1"
    return "v2" if _is_v2(document, all) else None


def encode(
    protocol: Protocol, model: str, data: bytes, content_type: str = BYTES, *, explain: bool = False
) -> Request:
    """Encode the request for one input. Raises PredictError for invalid JSON, and for text not in UTF-8."""
    path = request_path(protocol, model, explain=explain)
    document = None
    if content_type == JSON:
        data, document = read_json(data)
        if protocol in ("plain", "json"):
            return Request(protocol, path, data, JSON)
        if protocol == "v1" and _is_v1(document):
            return Request(protocol, path, data, JSON, whole=True)
        if protocol == "v1":
            return Request(protocol, path, b'{"instances":[' + data + b"]}", JSON)
        if _is_v2(document, any):
            return Request(protocol, path, data, JSON, whole=True)
    if protocol == "plain":
        return Request(protocol, path, data, content_type)
    head, tail = _FRAMES[protocol]
    as_text = protocol != "json" and (content_type == JSON or content_type.startswith("text/"))
    value = _quote(data) if as_text else b'"' + base64.b64encode(data) + b'"'
    return Request(protocol, path, head + value + tail, JSON)


def _quote(text: bytes) -> bytes:
    """Return UTF-8 as a JSON string."""
    try:
        return json.dumps(text.decode(), ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise PredictError(
            f"the text is not UTF-8: {error.reason} at byte {error.start}",
            hint="Convert it, as with `iconv -f WINDOWS-1252 -t UTF-8`, or send its bytes: "
            "`--protocol plain`.",
        ) from error


def _is_v1(document: Any) -> bool:
    return isinstance(document, dict) and isinstance(document.get("instances"), list)


def _is_v2(document: Any, enough: Callable[[Iterable[bool]], bool]) -> bool:
    """Return whether `inputs` are tensors: they have `all` or `any` of a tensor's keys."""
    inputs = document.get("inputs") if isinstance(document, dict) else None
    return (
        isinstance(inputs, list)
        and bool(inputs)
        and all(isinstance(tensor, dict) and enough(key in tensor for key in _TENSOR) for tensor in inputs)
    )
