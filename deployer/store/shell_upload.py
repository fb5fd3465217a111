"""An upload through a shell that resumes where it stopped, and compares every byte before it publishes.

Files are sent to a staging folder of the release, in segments at fixed offsets, so concurrent pushes write
the same bytes. The SHA-256 of each segment finds lost tails, holes and corrupted blocks, which are sent
again. One rename makes the release visible.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator
from itertools import count, groupby
from pathlib import Path

from deployer.errors import IntegrityError, StoreError
from deployer.patience import Patience
from deployer.store.volume_shell import BrokenError, Shell, run_script

BLOCK = 1 << 20  # bytes
BLOCKS = 16  # of a segment
_READ = 1 << 18  # bytes sent at a time

# Prints `DIGEST NUMBER NAME` for every segment, or `there` if the release is published.
_LOOK = """
place=$1 staging=$2 blocks=$3; shift 3
if [ -f "$place/release.json" ]; then rm -rf "$staging" || :; echo there; echo .; exit; fi
while [ $# -gt 0 ]; do
  file=$staging/$1 size=0 i=0
  mkdir -p "${file%/*}"
  [ ! -f "$file" ] || size=$(stat -c %s "$file")
  if [ "$size" -gt "$2" ]; then rm "$file"; size=0; fi
  while [ $((i * blocks * 1048576)) -lt "$size" ]; do
    sum=$(dd if="$file" bs=1048576 skip=$((i * blocks)) count="$blocks" 2>/dev/null | sha256sum)
    echo "${sum%% *} $i $1"
    i=$((i + 1))
  done
  shift 2
done
"""

_SEND = 'head -c "$3" | dd of="$1" bs=1048576 seek="$2" conv=notrunc,fsync'

# Moves away a folder without release.json that has the release's place, unless another push was faster.
_PUBLISH = """
place=$1 staging=$2 trash=$3
if [ -e "$place" ] && [ ! -f "$place/release.json" ]; then
  mv "$place" "$trash"
  [ ! -f "$trash/release.json" ] || mv "$trash" "$place"
fi
mkdir -p "${place%/*}"
touch -c "$staging/release.json"
[ -f "$place/release.json" ] || mv "$staging" "$place" || [ -f "$place/release.json" ]
rm -rf "$trash" "$staging" "$place/${staging##*/}" || :
find "${staging%/*}" -mindepth 1 -maxdepth 1 -mtime +7 -exec rm -rf {} + || :
"""

_PUBLISHED = '[ ! -f "$1/release.json" ] || echo there'

_Segment = tuple[str, int]  # a file's name in the release, and a number


class Upload:
    """The upload of the files `names` of one release from `folder`; `where` names the release in errors."""

    def __init__(self, shell: Shell, *, where: str, folder: Path, names: Iterable[str]) -> None:
        self.sent = 0  # bytes
        self._shell = shell
        self._where = where
        self._folder = folder
        self._sizes = {name: (folder / name).stat().st_size for name in names}
        self._wanted = {
            (name, number): digest
            for name in self._sizes
            for number, digest in enumerate(_digests(folder / name))
        }
        self._left = len(self._wanted)

    def run(self, place: str, staging: str, patience: Patience) -> None:
        """Send the segments that are missing in `staging`, then move it to `place`.

        Raises IntegrityError if bytes change on their way, StoreError, DiskFullError.
        """
        patience.again(
            lambda: self._attempt(place, staging), BrokenError, IntegrityError, progress=lambda: self._left
        )

    def _attempt(self, place: str, staging: str) -> None:
        try:
            missing = self._missing(place, staging)
            if missing:
                self._send(staging, missing)
                missing = self._missing(place, staging)
            if missing:
                raise IntegrityError(
                    "the stored bytes differ from the ones that were sent",
                    where=self._where,
                    hint="Push again. If that does not help, look for a proxy that changes the content.",
                )
            if missing is not None:
                run_script(
                    self._shell, self._where, _PUBLISH, place, staging, f"{staging}.{uuid.uuid4().hex}"
                )
        except BrokenError:
            raise
        except StoreError:
            # Another push that publishes the release removes its staging folder.
            if not run_script(self._shell, self._where, _PUBLISHED, place):
                raise

    def _missing(self, place: str, staging: str) -> list[_Segment] | None:
        """Return the segments that are missing or differ; None if the release is published."""
        sizes = [word for name, size in self._sizes.items() for word in (name, str(size))]
        answer = run_script(self._shell, self._where, _LOOK, place, staging, str(BLOCKS), *sizes).decode()
        if answer == "there\n":
            return None
        lines = (line.split(" ", 2) for line in answer.splitlines())
        found = {(name, int(number)): digest for digest, number, name in lines}
        missing = [segment for segment, digest in self._wanted.items() if found.get(segment) != digest]
        self._left = len(missing)
        return missing

    def _send(self, staging: str, missing: list[_Segment]) -> None:
        for name, first, last in _runs(missing):
            block = first * BLOCKS
            size = min(self._sizes[name], (last + 1) * BLOCKS * BLOCK) - block * BLOCK
            source = self._read(self._folder / name, block * BLOCK, size)
            run_script(
                self._shell, self._where, _SEND, f"{staging}/{name}", str(block), str(size), source=source
            )

    def _read(self, path: Path, start: int, size: int) -> Iterator[bytes]:
        with path.open("rb") as file:
            file.seek(start)
            while data := file.read(min(_READ, start + size - file.tell())):
                self.sent += len(data)
                yield data


def _digests(path: Path) -> Iterator[str]:
    """Yield the SHA-256 of each segment of a file."""
    with path.open("rb") as file:
        while data := file.read(BLOCKS * BLOCK):
            yield hashlib.sha256(data).hexdigest()


def _runs(segments: list[_Segment]) -> Iterator[tuple[str, int, int]]:
    """Group consecutive segments: yield the file's name, the first and the last number."""
    position = count()
    for (name, _), run in groupby(segments, key=lambda one: (one[0], one[1] - next(position))):
        numbers = [number for _, number in run]
        yield name, numbers[0], numbers[-1]
