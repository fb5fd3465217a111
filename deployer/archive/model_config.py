"""Adds `useVenv` to TorchServe's model-config.yaml, for an archive with requirements.

`useVenv` makes TorchServe install into a virtual environment that inherits the image's packages. Without it,
pip downloads all of them again, torch included.
"""

from __future__ import annotations

from typing import Any

from deployer.config.model_config import UNWRAPPED
from deployer.errors import ArchiveError

MODEL_CONFIG = "model-config.yaml"  # the name if the user has none
USE_VENV = b"useVenv: true\n"


def with_use_venv(content: bytes, path: str, *, wanted: bool) -> bytes:
    """Return the file's own bytes, with `useVenv` appended if it is wanted and not set.

    `ArchiveError` if the file is not a YAML mapping, or nothing can be appended to it.
    """
    config = read_mapping(content, path)
    if not wanted or "useVenv" in config:
        return content
    whole = content + (b"" if content.endswith(b"\n") else b"\n") + USE_VENV
    try:
        appended = read_mapping(whole, path)
    except ArchiveError:
        appended = {}
    if appended.get("useVenv") is not True or len(appended) != len(config) + 1:
        raise ArchiveError(
            "cannot append `useVenv: true` to this YAML",
            where=path,
            hint="Write `useVenv: true` into it, or write it as one block with a key on each line.",
        )
    return whole


def read_mapping(content: bytes, path: str) -> dict[Any, Any]:
    """Parse a YAML mapping. Raises ArchiveError, at the line if there is one."""
    import yaml

    try:
        config = yaml.safe_load(content)
    except (yaml.YAMLError, *UNWRAPPED) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        what = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise ArchiveError(f"invalid YAML: {what}", where=where) from error
    if not isinstance(config, dict):
        raise ArchiveError("not a YAML mapping", where=path, hint="Write `key: value` lines.")
    return config
