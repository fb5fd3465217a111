"""Chooses one of the services of a project, and merges its tables into the config. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deployer.config.keys import flatten
from deployer.config.schema import ServiceTables
from deployer.errors import ConfigError, use_one_of

_TABLES = tuple(ServiceTables.__struct_fields__)


def merge_service(data: dict[str, Any], service: str | None, file: str) -> dict[str, str]:
    """Merge the tables of a service into the config, and return the sources of the changed keys.

    `service` comes from `--service`; the default is `service.name`, then the only one of `[services]`. Raises
    ConfigError for a name that `kdeploy.toml` does not list, if it lists any. Leaves what does not fit the
    schema as it is.
    """
    services, named = data.get("services", {}), data.setdefault("service", {})
    default = named.get("name") if isinstance(named, dict) else 0
    if not isinstance(default, str | None) or not isinstance(services, dict):
        return {}
    if service and services and service not in (known := [*services, *([default] if default else [])]):
        raise ConfigError(f"unknown service {service!r}", where="--service", hint=use_one_of(service, known))
    chosen = service or default or (next(iter(services)) if len(services) == 1 else None)
    sources = {}
    if chosen and chosen != default:
        named["name"] = chosen
        sources["service.name"] = "--service" if service else f"{file}: services"
    tables = services.get(chosen) if chosen else None
    for table in _TABLES:
        values = tables.get(table) if isinstance(tables, dict) else None
        base = data.setdefault(table, {})
        if isinstance(values, dict) and isinstance(base, dict):
            _merge(base, values)
            sources |= dict.fromkeys(flatten({table: values}), f"{file}: services.{chosen}")
    return sources


def _merge(base: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
