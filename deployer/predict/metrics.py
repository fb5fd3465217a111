"""Reads the metrics that a TorchServe publishes, in Prometheus' text format."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from msgspec import Struct

from deployer.errors import TargetError
from deployer.predict.connection import Connection
from deployer.targets.protocols import Endpoint

TIMEOUT = 30.0  # seconds

_LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*")
_LABEL = re.compile(r'\s*([a-zA-Z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*,?')
_ESCAPE = re.compile(r"\\(.)")
_MODEL_LABELS = ("ModelName", "model_name")  # in metrics of the worker and of the frontend


class Metric(Struct, frozen=True):
    """One value. `kind` is counter, gauge, histogram or untyped."""

    name: str
    kind: str
    labels: dict[str, str]
    value: float

    @property
    def model(self) -> str | None:
        """The model that it is about; None if it is about the server or the machine."""
        return next((self.labels[label] for label in _MODEL_LABELS if label in self.labels), None)


def read_metrics(endpoint: Endpoint) -> list[Metric]:
    """Return the metrics of the server at an endpoint, sorted by name. Raises TargetError."""
    with contextlib.closing(Connection(endpoint, failure=TargetError, timeout=TIMEOUT)) as connection:
        response = connection.send("GET", "/metrics")
    if response.status != 200:
        raise TargetError(
            f"the metrics port answers HTTP {response.status}",
            hint="Remove `enable_metrics_api` and `metrics_mode` from `[torchserve]`, then roll out again.",
        )
    return sorted(parse_metrics(response.body.decode("utf-8", "replace")), key=lambda one: one.name)


def parse_metrics(text: str) -> Iterator[Metric]:
    """Yield the values in Prometheus' text format; lines that are not a value are skipped."""
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            name, _, kind = line[7:].partition(" ")
            kinds[name] = kind.strip()
            continue
        found = _LINE.fullmatch(line)
        if not found:
            continue
        name, labels, value = found.groups()
        with contextlib.suppress(ValueError):
            family = re.sub(r"_(bucket|sum|count)$", "", name)
            yield Metric(
                name, kinds.get(name) or kinds.get(family, "untyped"), _labels(labels or ""), float(value)
            )


def _labels(text: str) -> dict[str, str]:
    return {name: _ESCAPE.sub(_unescape, value) for name, value in _LABEL.findall(text)}


def _unescape(found: re.Match[str]) -> str:
    return "\n" if found[1] == "n" else found[1]
