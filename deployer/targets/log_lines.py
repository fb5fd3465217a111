"""Chooses lines of a log: the last ones, those since a time, those that are not a readiness probe's. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

# A probe asks several times a second while a model loads. Only loopback reaches the management API.
_PROBE = re.compile(r'ACCESS_LOG - /127\.0\.0\.1:\d+ "GET /models(\?limit=\d+|/[^ ]+)? HTTP/1\.1" 200 ')
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3} ")


class Part(Struct, frozen=True):
    """The part of a log to show: its last `tail` lines, of the last `since` seconds. None: all."""

    tail: int | None = None
    since: float | None = None


WHOLE = Part()


def is_probe(line: str) -> bool:
    """Return whether a line is a request of the readiness probe that succeeded."""
    return bool(_PROBE.search(line))


def last(lines: Sequence[str], count: int | None) -> Sequence[str]:
    """Return the last lines; all of them if `count` is None."""
    return lines if count is None else lines[max(len(lines) - count, 0) :]


def since(lines: Sequence[str], time: str) -> Sequence[str]:
    """Return the lines since a time, which has TorchServe's format: 2026-12-01T15:16:29,305.

    A line without a time belongs to the one before it.
    """
    stamped = [index for index, line in enumerate(lines) if _TIME.match(line)]
    fresh = next((index for index in stamped if lines[index] >= time), len(lines))
    return lines if fresh in stamped[:1] else lines[fresh:]
