"""Names of keys in the environment, and the variables that Kubernetes itself sets there. Pure."""

from __future__ import annotations

import re

PREFIX = "KDEPLOY_"

_IP = r"[0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*"
# What Kubernetes sets in each container for every Service of its namespace: names, and values of that form.
_SERVICE_LINKS = [
    (re.compile(f"{PREFIX}.+_{name}"), re.compile(value))
    for name, value in (
        ("SERVICE_HOST", _IP),
        ("SERVICE_PORT(_[A-Z0-9_]+)?", "[0-9]+"),
        ("PORT(_[0-9]+_(TCP|UDP|SCTP))?", "(tcp|udp|sctp)://.+:[0-9]+"),
        ("PORT_[0-9]+_(TCP|UDP|SCTP)_PROTO", "tcp|udp|sctp"),
        ("PORT_[0-9]+_(TCP|UDP|SCTP)_PORT", "[0-9]+"),
        ("PORT_[0-9]+_(TCP|UDP|SCTP)_ADDR", _IP),
    )
]


def is_service_link(name: str, text: str) -> bool:
    """Whether Kubernetes has set a variable: a `*_PORT` that holds a plain number may be a setting."""
    return any(link.fullmatch(name) and value.fullmatch(text) for link, value in _SERVICE_LINKS)


def variable(key: str) -> str:
    """Return the variable that sets a key: KDEPLOY_SERVING_BATCH_SIZE for serving.batch-size."""
    return PREFIX + re.sub(r"[-.]", "_", key).upper()
