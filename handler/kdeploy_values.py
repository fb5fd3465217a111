"""Writes the values of a handler: as JSON for V1 and V2, and as TorchServe does for other requests."""

import base64
import io
import json
import sys


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


def write_json(value):
    """Return standard JSON. NaN and infinities, which JSON does not have, become null."""
    try:
        return json.dumps(value, default=_leaf, allow_nan=False)
    except ValueError:
        return json.dumps(json.loads(json.dumps(value, default=_leaf), parse_constant=lambda _: None))


def plain(value):
    """Return a value as JSON's types. Raises TypeError or ValueError."""
    return json.loads(json.dumps(value, default=_leaf))


def _leaf(value):
    """Return the JSON value of bytes, or of a value of numpy or torch, without importing either."""
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode("ascii")
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"no JSON for {type(value).__name__}")
