"""Tells the handler adapter which API a request came by: the worker does not see the path. Pure."""

import re

_API = re.compile(rb"(?:https?://[^/]*)?/(v1|v2)/", re.IGNORECASE)
_MARK = re.compile(rb"\r\nkdeploy-api[ \t]*:[^\r\n]*", re.IGNORECASE)
_FORM = re.compile(rb"\r\ncontent-type[ \t]*:[ \t]*application/x-www-form-urlencoded[^\r\n]*", re.IGNORECASE)


def mark(data, path):
    """Return the head of a request with a body, with the header `kdeploy-api`: v1, v2 or torchserve.

    V1 and V2 have no forms. curl's `-d` declares one, and TorchServe would decode JSON as one.
    """
    found = _API.match(path)
    api = found[1].lower() if found else b"torchserve"
    data = _MARK.sub(b"", data)
    if found:
        data = _FORM.sub(b"\r\ncontent-type: application/json", data)
    return b"%skdeploy-api: %s\r\n\r\n" % (data[:-2], api)
