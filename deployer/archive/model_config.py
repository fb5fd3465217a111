"""TorchServe's model-config.yaml, as it goes into an archive with requirements.

`useVenv` makes TorchServe install into a virtual environment that inherits what the image has; without it,
pip fetches all of it again, torch included.
"""

from __future__ import annotations

from typing import Any

from deployer.errors import ArchiveError

NAME = "model-config.yaml"  # where the model has none of its own

USE_VENV = b"useVenv: true\n"
# What PyYAML lets out of its constructors, for `!!int ""` and the like.
_UNWRAPPED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def model_config(content: bytes, path: str, *, use_venv: bool) -> bytes:
    """Return what is to be packed: the file's own bytes, then `useVenv` where it is wanted and not settled.

    `ArchiveError` if the file is no YAML mapping, or one that nothing can be appended to.
    """
    config = _mapping(content, path)
    if not use_venv or "useVenv" in config:
        return content
    whole = content + (b"" if content.endswith(b"\n") else b"\n") + USE_VENV
    try:
        appended = _mapping(whole, path)
    except ArchiveError:
        appended = {}
    if appended.get("useVenv") is not True or len(appended) != len(config) + 1:
        raise ArchiveError(
            "kdeploy cannot append `useVenv: true` to this YAML",
            where=path,
            hint="write `useVenv: true` into it, or write it as one block with a key on each line",
        )
    return whole


def _mapping(content: bytes, path: str) -> dict[Any, Any]:
    import yaml

    try:
        config = yaml.safe_load(content)
    except (yaml.YAMLError, *_UNWRAPPED) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        what = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise ArchiveError(f"the config file is no YAML: {what}", where=where) from error
    if not isinstance(config, dict):
        raise ArchiveError("the config file is no YAML mapping", where=path, hint="write `key: value` lines")
    return config
