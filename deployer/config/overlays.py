"""Reads the patch files of a config, and checks its overlays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import structs

from deployer.config.model_config import UNWRAPPED
from deployer.config.schema import Config, KServeTarget, Overlay
from deployer.errors import ConfigError
from deployer.files import read_text
from deployer.overlay import find_faults


def read_overlays(config: Config, root: Path, where: Callable[[str], str]) -> Config:
    """Return a config whose patches are tables and not files. Raises ConfigError.

    `where` returns the place where a key was set; files are relative to `root`.
    """
    serving = config.serving
    patches = tuple(_patches(serving.patches, root, where("serving.patches")))
    _check(serving.overlay, where, "serving.overlay")
    targets = dict(config.targets)
    for name, target in config.targets.items():
        if isinstance(target, KServeTarget):
            read = tuple(_patches(target.patches, root, where(f"targets.{name}.patches")))
            _check(target.overlay, where, f"targets.{name}.overlay")
            targets[name] = structs.replace(target, patches=read)
    return structs.replace(config, serving=structs.replace(serving, patches=patches), targets=targets)


def _patches(patches: Sequence[str | Overlay], root: Path, where: str) -> Iterator[Overlay]:
    for number, patch in enumerate(patches):
        content = patch if isinstance(patch, dict) else _read(root / patch, patch, where)
        place = f"{where}[{number}]" if isinstance(patch, dict) else patch
        for fault in find_faults(content):
            raise ConfigError(fault.what, where=": ".join(filter(None, [place, fault.path])), hint=fault.hint)
        yield content


def _check(overlay: Overlay, where: Callable[[str], str], key: str) -> None:
    for fault in find_faults(overlay):
        raise ConfigError(fault.what, where=where(f"{key}.{fault.path}".rstrip(".")), hint=fault.hint)


def _read(path: Path, name: str, where: str) -> Any:
    """Return the content of a YAML file. Raises ConfigError."""
    import yaml

    try:
        return yaml.safe_load(read_text(path))
    except FileNotFoundError as error:
        hint = "Paths are relative to the folder of kdeploy.toml."
        raise ConfigError(f"file {name!r} not found", where=where, hint=hint) from error
    except OSError as error:
        raise ConfigError(f"cannot read {name!r}: {error.strerror}", where=where) from error
    except (yaml.YAMLError, *UNWRAPPED) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        what = f"invalid YAML: {getattr(error, 'problem', None) or error}"
        hint = "Write one document, as for `kubectl patch --type merge`."
        raise ConfigError(what, where=place, hint=hint) from error
