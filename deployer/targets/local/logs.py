"""The log lines of what serves and of what fails to: read from files, whether anything runs or not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from deployer.targets.local.revisions import Record

_LOOK = 0.2
# The supervisor's own probes, several times a second while a model loads: nobody's requests.
_PROBE = re.compile(r'ACCESS_LOG - /127\.0\.0\.1:\d+ "GET /models(\?limit=1000|/[^ ]+) HTTP/1\.1" 200 ')


def revisions_of_interest(record: Record) -> list[str]:
    """Return the revisions that serve, and the newest, be it loading or failed."""
    return list(dict.fromkeys([*(line.revision for line in record.traffic), record.latest]))


def read_logs(
    find: Callable[[], list[tuple[str, Path]]], *, follow: bool, sleep: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """Yield the lines of the logs that `find` names, with the revision in front where there are several.

    With `follow`, goes on with what is added, and with the logs of revisions that come, until `find`
    names none.
    """
    positions: dict[Path, int] = {}
    logs = find()
    while logs:
        for name, path in logs:
            data, positions[path] = _read(path, positions.get(path, 0))
            yield from _lines(data, name if len(logs) > 1 else "")
        if not follow:
            return
        sleep(_LOOK)
        logs = find()


def read_previous(logs: list[tuple[str, Path]]) -> Iterator[str]:
    """Yield the lines from before each log was begun anew, which is when it has grown large."""
    for name, path in logs:
        older = path.with_suffix(".log.1")
        if older.is_file():
            yield from _lines(_read(older, 0)[0], name if len(logs) > 1 else "")
        else:
            yield f"[{name}] there is no log before this one"


def _lines(data: str, name: str) -> Iterator[str]:
    prefix = f"[{name}] " if name else ""
    return (prefix + line for line in data.splitlines() if not _PROBE.search(line))


def _read(path: Path, position: int) -> tuple[str, int]:
    """Read whole lines from a position; a file that has become shorter is read from its start."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size < position:
                position = 0
            file.seek(position)
            data = file.read()
    except OSError:
        return "", position
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode("utf-8", "replace"), position + len(whole)
