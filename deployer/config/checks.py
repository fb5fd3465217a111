"""Checks rules that involve several values of a config, and its texts. Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from deployer.config.keys import flatten
from deployer.config.schema import NAME_MAX, NAME_PATTERN, Config, Store, Variable
from deployer.errors import ConfigError, use_one_of
from deployer.overlay import variable_fault

# A version that contains the end of a release ID could make one release's folder name the prefix of
# another's. KServe's downloader matches plain prefixes, and would download both.
_RELEASE_TAIL = re.compile(r"-[0-9a-f]{12}")
SERVICE_NAMES = f"Use lower-case letters, digits and -, a letter first, at most {NAME_MAX} characters."
_METRICS = "Set `scaling.metric`: cpu, memory, concurrency, rps, or prometheus for a query."


def check_config(config: Config, where: Callable[[str], str]) -> None:
    """Raise ConfigError for the first broken rule; `where` returns the place where a key was set."""
    for key, what, hint in itertools.chain(
        _service_faults(config),
        _serving_faults(config),
        _scaling_faults(config),
        _store_faults(config),
        _target_faults(config),
        _text_faults(config),
    ):
        raise ConfigError(what, where=where(key), hint=hint)


def is_service_name(name: str) -> bool:
    """Return whether KServe accepts a name for an InferenceService."""
    return len(name) <= NAME_MAX and re.match(NAME_PATTERN, name) is not None


def to_service_name(name: str) -> str:
    """Return the nearest name to a model's that KServe accepts; empty if it has no letter."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789")
    return words[:NAME_MAX].rstrip("-")


def _service_faults(config: Config) -> Iterator[tuple[str, str, str]]:
    """Yield the key of each value that breaks a rule, what is wrong, and what to do."""
    for name in config.services:
        if not is_service_name(name):
            yield "services", f"invalid service name {name!r}", SERVICE_NAMES


def _serving_faults(config: Config) -> Iterator[tuple[str, str, str]]:
    version, serving, scaling = config.model.version, config.serving, config.scaling
    if _RELEASE_TAIL.search(version):
        what = f"invalid version {version!r}: - and 12 hex digits are the end of a release ID"
        yield "model.version", what, "Shorten the version."
    if serving.min_workers > serving.max_workers:
        yield "serving.min-workers", "min-workers is more than max-workers", "Raise serving.max-workers."
    if scaling.min_replicas > scaling.max_replicas:
        yield "scaling.min-replicas", "min-replicas is more than max-replicas", "Raise scaling.max-replicas."
    for name, value in serving.env.items():
        if fault := _variable_fault(name, value):
            yield f"serving.env.{name}", *fault


def _scaling_faults(config: Config) -> Iterator[tuple[str, str, str]]:
    scaling = config.scaling
    metric, target = scaling.metric, scaling.target
    of_query = {"query": scaling.query, "prometheus": scaling.prometheus}
    for key, value in {"target": target, **of_query}.items():
        wanted = metric == "prometheus" or (key == "target" and metric == "memory")
        if wanted and value is None:
            yield "scaling.metric", f"metric {metric} needs scaling.{key}", f"Set `scaling.{key}`."
        elif value is not None and (metric is None or (key in of_query and metric != "prometheus")):
            yield f"scaling.{key}", f"{key} has no effect without its metric", _METRICS
    if target is None or metric in (None, "prometheus"):
        return
    most = 100 if metric in ("cpu", "memory") else 2**31 - 1
    if target > most or target != int(target):
        unit = "a percentage of the request, from 1 to 100" if most == 100 else "a whole number of requests"
        yield "scaling.target", f"invalid target {target:g} of {metric}", f"Write {unit}."


def _store_faults(config: Config) -> Iterator[tuple[str, str, str]]:
    store = config.store
    if "://" in store.uri and re.search(r"[?#@]", store.uri):
        hint = "Write s3://BUCKET/PREFIX or the like, without credentials."
        yield "store.uri", "store.uri contains more than a location", hint
    if sum(map(bool, (store.service_account, store.secret_name, store.service_account_annotations))) > 1:
        what = "service-account, secret-name and service-account-annotations exclude each other"
        yield "store", what, "Name an existing ServiceAccount, or configure the one that kdeploy creates."
    if endpoint := store.cluster_endpoint:
        yield from (("store.cluster-endpoint", *fault) for fault in _endpoint_faults(store, endpoint))


def _target_faults(config: Config) -> Iterator[tuple[str, str, str]]:
    if not config.targets:
        yield "targets", "no targets", 'Add [targets.local] with kind = "local".'
    for name in config.targets:
        if not re.match(NAME_PATTERN, name):
            yield "targets", f"invalid target name {name!r}", "Use lower-case letters, digits and -."
    default = config.default_target
    if default is not None and default not in config.targets:
        yield "default-target", f"unknown target {default!r}", use_one_of(default, config.targets)


def _endpoint_faults(store: Store, endpoint: str) -> Iterator[tuple[str, str]]:
    """Yield why pods would not use an endpoint, and what to do."""
    if store.uri.partition("://")[0] in ("gs", "az", "https", "pvc"):
        yield "cluster-endpoint is only for s3:// stores", "Remove it."
    if store.service_account or store.secret_name:
        what = "cluster-endpoint has no effect with service-account or secret-name"
        yield what, "Remove it. The existing object names the endpoint, in serving.kserve.io/s3-endpoint."
    if urlsplit(endpoint).path.strip("/"):
        yield "invalid endpoint of S3: it contains a path", "Write http://HOST:PORT or https://HOST."


def _text_faults(config: Config) -> Iterator[tuple[str, str, str]]:
    for key, value in flatten(msgspec.to_builtins(config)).items():
        for text in value if isinstance(value, list | tuple) else [value]:
            if what := text_fault(str(text)):
                yield key, what, "Write the value in UTF-8, without NUL bytes."


def check_root(root: Path) -> None:
    """Raise ConfigError if a project's path is not UTF-8: TorchServe cannot start there."""
    if text_fault(str(root)):
        raise ConfigError(
            "the path of the project is not UTF-8, so TorchServe cannot start there",
            where=str(root),
            hint="Rename the folder.",
        )


def text_fault(text: str) -> str | None:
    """Return why a text is invalid in a config, or None."""
    if "\0" in text:
        return "it contains a NUL byte"
    return "it is not UTF-8" if re.search("[\ud800-\udfff]", text) else None


def _variable_fault(name: str, value: Variable) -> tuple[str, str] | None:
    if isinstance(value, str):
        return variable_fault(name, value)
    if bool(value.secret) == bool(value.config_map):
        return "name either a Secret or a ConfigMap", 'Write { secret = "NAME", key = "KEY" }.'
    return variable_fault(name, "")
