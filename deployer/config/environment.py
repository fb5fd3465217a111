"""Finds the keys that environment variables set. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from deployer.config.keys import KEYS, fields, target_type
from deployer.config.schema import Config
from deployer.errors import ConfigError

_PREFIX = "KDEPLOY_"
_TORCHSERVE = f"{_PREFIX}TORCHSERVE_"
_IP, _URL = r"([0-9.]+ | [0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)", r"(tcp|udp|sctp)://.+:[0-9]+"
# Kubernetes sets these in each container for every Service of its namespace.
_SERVICE_LINK = re.compile(
    rf"""{_PREFIX}(.+_)?(
        SERVICE_HOST={_IP} | SERVICE_PORT(_[A-Z0-9_]+)?=[0-9]+ | PORT={_URL} |
        PORT_[0-9]+_(TCP|UDP|SCTP) (={_URL} | _PROTO=(tcp|udp|sctp) | _PORT=[0-9]+ | _ADDR={_IP})
    )""",
    re.VERBOSE,
)


def keys_from_environment(
    environment: Mapping[str, str], data: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """Yield (variable, key, text) for each `KDEPLOY_*` variable that sets a key.

    `data` is the content of the file, which names the targets. Ignores variables of no table, and those that
    Kubernetes sets for a Service whose name begins with `kdeploy`. Raises ConfigError for an unknown variable
    of a table.
    """
    names = {variable(key): key for key in KEYS}
    targets = data.get("targets")
    for target, table in {"local": {}, **(targets if isinstance(targets, dict) else {})}.items():
        keys = [f"targets.{target}.{key}" for key in fields(target_type(table))]
        names |= {variable(key): key for key in keys}
    tables = tuple(variable(table) + "_" for table in fields(Config))
    for name, text in sorted(environment.items()):
        # A known *_PORT that holds a plain number is a setting.
        if _SERVICE_LINK.fullmatch(f"{name}={text}") and (name not in names or "://" in text):
            continue
        if name in names:
            yield name, names[name], text
        elif name.startswith(_TORCHSERVE):
            yield name, "torchserve." + name.removeprefix(_TORCHSERVE).lower(), text
        elif name.startswith(tables):
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {close[0]}?" if close else "Unset the variable."
            raise ConfigError("unknown variable", where=name, hint=hint)


def variable(key: str) -> str:
    """Return the variable that sets a key: KDEPLOY_SERVING_BATCH_SIZE for serving.batch-size."""
    return _PREFIX + re.sub(r"[-.]", "_", key).upper()
