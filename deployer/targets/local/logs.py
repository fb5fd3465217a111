"""Reads the log files of TorchServes, and limits the size of the supervisor's log."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from deployer.targets.local.state import explained
from deployer.targets.log_lines import WHOLE, Part, is_probe, last, since

_INTERVAL = 0.2  # seconds between two reads with `follow`
_LOG_MAX = 4 << 20


def read_logs(
    find: Callable[[], list[tuple[str, Path]]],
    *,
    follow: bool,
    part: Part = WHOLE,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Yield the lines of the logs that `find` returns, with the revision as prefix if there are several.

    `part` chooses among the lines that are there. With `follow`, also yields new lines and the logs of new
    revisions, until `find` returns none.
    """
    positions: dict[Path, int] = {}
    logs = find()
    while logs:
        for name, path in logs:
            data, positions[path] = read_lines(path, positions.get(path, 0))
            yield from _lines(data, name if len(logs) > 1 else "", part)
        if not follow:
            return
        sleep(_INTERVAL)
        logs, part = find(), WHOLE


def read_previous(logs: list[tuple[str, Path]], part: Part = WHOLE) -> Iterator[str]:
    """Yield the older lines of each log, which `keep_small` moved to NAME.1."""
    for name, path in logs:
        older = path.with_suffix(".log.1")
        if older.is_file():
            yield from _lines(read_lines(older, 0)[0], name if len(logs) > 1 else "", part)
        else:
            yield f"[{name}] no previous log"


class RateLimit(logging.Filter):
    """Limits each place in the code to `most` records per `period` seconds, and counts the rest."""

    def __init__(
        self, most: int = 10, period: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._most, self._period, self._clock = most, period, clock
        self._seen: dict[object, tuple[float, int]] = {}  # the period's start, and the records in it

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record; add to its message how many were not logged."""
        place = (record.pathname, record.lineno, record.exc_info and record.exc_info[0])
        now = self._clock()
        since, count = self._seen.get(place, (now, 0))
        note = ""
        if now - since > self._period:
            note = f" ({count - self._most} more were not logged)" if count > self._most else ""
            since, count = now, 0
        self._seen[place] = since, count + 1
        if count + 1 == self._most:
            note = f" (more of these are not logged for {self._period:g} s)"
        if note:
            record.msg, record.args = record.getMessage() + note, ()
        return count < self._most


def keep_small(log: Path) -> None:
    """Copy a large log to NAME.1 and truncate it in place, because a process appends to it."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > _LOG_MAX:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)


def _lines(data: str, name: str, part: Part) -> Iterator[str]:
    prefix = f"[{name}] " if name else ""
    lines: Sequence[str] = [line for line in data.splitlines() if not is_probe(line)]
    if part.since is not None:
        began = datetime.now() - timedelta(seconds=part.since)  # noqa: DTZ005 - TorchServe logs local time
        lines = since(lines, began.isoformat(timespec="milliseconds").replace(".", ","))
    return (prefix + line for line in last(lines, part.tail))


def read_lines(path: Path, position: int) -> tuple[str, int]:
    """Read whole lines from a position; a file that has become shorter is read from the start."""
    with explained(path, "cannot read a log"):
        try:
            with path.open("rb") as file:
                if path.stat().st_size < position:
                    position = 0
                file.seek(position)
                data = file.read()
        except FileNotFoundError:
            return "", position
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode("utf-8", "replace"), position + len(whole)
