"""Recognizes the protocol of a request, reads its rows, and writes the handler's values as its answer.

The body decides:

* A JSON object with a list of `instances` is V1. Each instance is a row. The answer is
  `{"predictions": [...]}`.
* A JSON object with tensors as `inputs` is V2 (see kdeploy_v2.py).
* Any other body (raw bytes, form fields, other JSON) is one row, in TorchServe's form. The answer is the
  handler's value.
"""

import json
import logging
from typing import NamedTuple

from kdeploy_readings import OBJECTS, REQUEST, Body
from kdeploy_requests import Pickled, Request
from kdeploy_rows import make_explained_row, make_nested_row, make_row
from kdeploy_v2 import HEADER_LENGTH, BadRequestError, Rows, is_v2, read_v2, write_v2
from kdeploy_values import write_json

JSON, BINARY = "application/json", "application/octet-stream"
API_HEADER = "kdeploy-api"  # set by the container's front: v1, v2 or torchserve, by the path

_NOT_KEYS = {"instances", "data", "body"}  # of V1, which a handler cannot read in a row

logger = logging.getLogger("kdeploy_handler")


class Settings(NamedTuple):
    """`model.body` and `model.v2-rows` of kdeploy.toml."""

    body: str = "adapter"
    v2_rows: str = "tensor"


class Asked:
    """A V1 or V2 request, which can be read in several ways (see kdeploy_readings.py).

    Raises BadRequestError. On TorchServe's own paths, V2 is checked only when it is read as VALUES.
    """

    def __init__(self, index, row, body, binary, context, settings, by_path):
        self.index = index
        self.by_path = by_path
        self.key = "instances" if isinstance(body.get("instances"), list) else "inputs"
        self.explain = is_set(context, index, "explain")
        self.separate = self.explain or is_set(context, index, "describe")
        self._row = row
        self._body = body
        self._binary = binary
        self._settings = settings
        self._context = context
        self._kept = self._tracked = None
        self._rows = None if by_path else self._read_rows()

    @property
    def has_bare_rows(self):
        """Whether a row is not an object, so that VALUES and OBJECTS differ."""
        return not self.explain and any(type(row) is not dict for row in self._rows.values)

    def keep(self):
        """Copy the body, so that it can be read again after a call. False if it is nested too deeply."""
        try:
            self._kept = Pickled(self._body)
        except RecursionError:
            return False
        return True

    @property
    def looked_up(self):
        """Whether the handler has looked up `instances` or `inputs` in the body, as REQUEST."""
        return self._tracked is not None and self._tracked.looked_up

    @property
    def reads_tensors(self):
        """Whether a row is a whole tensor of V2."""
        return self.key == "inputs" and self._settings.v2_rows == "tensor"

    def read(self, reading, again=False):
        """Return the request for one reading; `again`: the handler has got it. Raises BadRequestError."""
        if again:
            self._body = self._kept.load()
        if reading == REQUEST:
            return Request(self.index, [self._as_torchserves()], separate=self.separate)
        rows = self._read_rows() if again or self._rows is None else self._rows
        make = make_explained_row if self.explain else make_nested_row if reading == OBJECTS else make_row
        request = Request(
            self.index,
            rows.values,
            dress=lambda row, value: make(value, rows.keys(row)),
            write=lambda values: self._write(rows, values),
            separate=self.separate,
            whole=rows.whole,
        )
        request.any_count = self.key == "instances" and len(rows.values) == 1
        return request

    def _as_torchserves(self):
        """Return TorchServe's row, with the body as JSON."""
        key = "data" if self._row.get("body") is None else "body"
        if self.by_path or self._binary is not None:
            return self._row
        if self._kept is None:  # known: the type of the body is exactly dict
            return {**self._row, key: self._body}
        self._tracked = Body(self._body, self.key)
        return {**self._row, key: self._tracked}

    def _read_rows(self):
        if self.key == "inputs":
            return read_v2(self._body, self._binary, self._settings.v2_rows)
        keys = {key: value for key, value in self._body.items() if key not in _NOT_KEYS}
        return Rows(self._body["instances"], lambda _: keys)

    def _write(self, rows, values):
        """Return the answer for a handler's values, and set its headers."""
        context = self._context
        context.set_response_content_type(self.index, JSON)
        if self.key == "instances":
            return write_json({"explanations" if self.explain else "predictions": values}).encode()
        model = context.model_name, context.manifest["model"].get("modelVersion")
        answer, json_size = write_v2(self._body, rows, values, model)
        if json_size:
            context.set_response_content_type(self.index, BINARY)
            context.set_response_header(self.index, HEADER_LENGTH, str(json_size))
        return answer


def read_request(index, row, context, settings):
    """Read one request of TorchServe's batch: an `Asked` for V1 or V2, else a `Request`.

    An invalid one is returned as failed.
    """
    # TorchServe's handlers read both headers only at row 0, and apply them to the whole call.
    separate = is_set(context, index, "explain") or is_set(context, index, "describe")
    try:
        if settings.body == "adapter":
            headers = _headers(context, index)
            by_path = headers.get(API_HEADER) == "torchserve"
            body, binary = None, None
            try:
                body, binary = _protocol_body(row, headers)
            except BadRequestError:
                if not by_path:
                    raise
            if body is not None:
                return Asked(index, row, body, binary, context, settings, by_path)
        return Request(index, [row], separate=separate)
    except BadRequestError as error:
        return Request(index, failure=(400, {"error": str(error)}))
    except Exception as error:  # unexpected; only this request fails
        logger.warning("Cannot read a request", exc_info=True)
        return Request(index, failure=(500, {"error": f"cannot read the request: {error!r}"}))


def is_set(context, index, header):
    """Return whether TorchServe has set one of its headers of a request."""
    return context.get_request_header(index, header) == "True"


def _headers(context, index):
    """Return the HTTP headers of a request by lower-case name. TorchServe adds objects, about form fields."""
    headers = context.get_all_request_header(index).items()
    return {name.lower(): value for name, value in headers if isinstance(value, str)}


def _protocol_body(row, headers):
    """Return the body of a request if it is a V1 or V2 object, else None; and the binary data after it."""
    if headers.get("content-type", "").lower().startswith("multipart/"):
        return None, None
    # TorchServe parses a body only if its type is exactly application/json. With gRPC, it is in `data`.
    body, binary = row.get("data") if row.get("body") is None else row["body"], None
    length = headers.get(HEADER_LENGTH.lower())
    if isinstance(body, (bytes, bytearray)) and length is not None:
        body, binary = _split(body, length)
    elif isinstance(body, (bytes, bytearray, str)):
        body = _parse(body)
    if not isinstance(body, dict) or not (isinstance(body.get("instances"), list) or is_v2(body)):
        return None, None
    return body, binary


def _split(body, length):
    """Return the JSON and the binary data of a V2 request. Raises BadRequestError."""
    size = int(length) if length.isascii() and length.isdigit() else -1
    if not 0 <= size <= len(body):
        raise BadRequestError(f"{HEADER_LENGTH} must be the bytes of JSON at the start of the body")
    return _loads(bytes(body[:size])), bytes(body[size:])


def _parse(body):
    """Return a JSON object with our keys, or None. The first bytes tell it from an image."""
    body = body.encode(errors="surrogatepass") if isinstance(body, str) else body
    if body[:64].lstrip()[:1] != b"{" or not (b'"instances"' in body or b'"inputs"' in body):
        return None
    return _loads(body)


def _loads(body):
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"invalid JSON in the body: {error}") from error
