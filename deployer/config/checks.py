"""Rules about several values of a config, and about its texts. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from deployer.config.schema import NAME_PATTERN, Config, Store
from deployer.errors import ConfigError

# A version that holds the tail of a release id could make one release's folder name the prefix of
# another's, and KServe's downloader, which matches plain prefixes, would fetch both.
_RELEASE_TAIL = re.compile(r"-[0-9a-f]{12}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_config(config: Config, where: Callable[[str], str]) -> None:
    """Raise ConfigError for the first broken rule; `where` returns the place where a key was set."""

    def fail(key: str, what: str, hint: str) -> ConfigError:
        return ConfigError(what, where=where(key), hint=hint)

    model, serving = config.model, config.serving
    if _RELEASE_TAIL.search(model.version):
        raise fail("model.version", "it contains - and 12 hex digits, as release IDs do", "shorten it")
    if serving.min_workers > serving.max_workers:
        raise fail("serving.min-workers", "more than serving.max-workers", "raise serving.max-workers")
    if config.scaling.min_replicas > config.scaling.max_replicas:
        raise fail("scaling.min-replicas", "more than scaling.max-replicas", "raise scaling.max-replicas")
    for name, value in serving.env.items():
        if what := _env_fault(name, value):
            raise fail("serving.env", what, "letters, digits and _; modules go into model.extra-files")
    if fault := _store_fault(config.store):
        raise fail("store", *fault)
    _check_targets(config, fail)
    for key, value in _texts(msgspec.to_builtins(config)):
        if what := text_fault(value):
            raise fail(key, what, "write it in UTF-8, without control characters")


def check_root(root: Path) -> None:
    """Raise ConfigError if a project's path is not UTF-8: TorchServe cannot start there."""
    try:
        str(root).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            "the path of the project is not UTF-8, so TorchServe cannot start there",
            where=str(root),
            hint="rename the folder",
        ) from error


def _check_targets(config: Config, fail: Callable[[str, str, str], ConfigError]) -> None:
    if not config.targets:
        raise fail("targets", "no targets", 'add [targets.local] with kind = "local"')
    for name in config.targets:
        if not re.match(NAME_PATTERN, name):
            raise fail("targets", f"invalid target name {name!r}", "lower-case letters, digits and -")


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text of a config with its key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value


def text_fault(text: str) -> str | None:
    """Return what makes a text invalid in a config, or None."""
    if "\0" in text:
        return "it contains a NUL byte"
    return "it is not UTF-8" if re.search("[\ud800-\udfff]", text) else None


def _store_fault(store: Store) -> tuple[str, str] | None:
    if "://" in store.uri and re.search(r"[?#@]", store.uri):
        return (
            "store.uri contains more than a location",
            "credentials do not belong there: s3://bucket/prefix",
        )
    named = [store.service_account, store.secret_name, store.service_account_annotations]
    if sum(map(bool, named)) > 1:
        return (
            "service-account, secret-name and service-account-annotations exclude each other",
            "name an existing ServiceAccount, or configure the one that kdeploy creates",
        )
    return None


def _env_fault(name: str, value: str) -> str | None:
    if name == "PYTHONPATH":
        return "KServe refuses PYTHONPATH"
    if name.startswith("KDEPLOY_"):
        return f"{name} is kdeploy's own: it comes from serving.drain-seconds and serving.response-timeout"
    return (
        None if _ENV_NAME.fullmatch(name) and "\0" not in value else f"invalid environment variable {name!r}"
    )
