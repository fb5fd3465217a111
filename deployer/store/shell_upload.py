"""An upload through a shell that goes on where it stopped, and believes nothing that it has not compared.

Files come to a staging folder of the release, in segments at fixed places: whoever writes one, and how often,
writes the same bytes. What is there is told by the SHA-256 of each segment, so that a lost tail, a hole and a
corrupted block are the same thing: segments to be sent again. One rename makes the release visible.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from deployer.errors import IntegrityError, StoreError
from deployer.store.volume_shell import BrokenError, Shell, ask

ATTEMPTS = 5  # in a row that bring nothing
BLOCK = 1 << 20
BLOCKS = 16  # of a segment
SEGMENT = BLOCKS * BLOCK
_READ = 1 << 18  # bytes in memory at a time

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

# What stands in the place without being a release gives way; unless another push was faster just then.
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

_Segment = tuple[str, int]  # a file's name below the release, and a number


class Upload:
    """The upload of one release's files, each below `folder` as it is to be below `place`."""

    def __init__(self, shell: Shell, *, where: str, folder: Path, names: Iterable[str]) -> None:
        self.sent = 0
        self._shell = shell
        self._where = where
        self._folder = folder
        self._sizes = {name: (folder / name).stat().st_size for name in names}
        self._wanted = {key: digest for name in self._sizes for key, digest in _digests(folder, name)}

    def run(self, place: str, staging: str, sleep: Callable[[float], None]) -> None:
        """Send what is not there, until all of it is, and publish it.

        Raises IntegrityError where something on the way changes what passes, StoreError, DiskFullError.
        """
        fewest, tries = len(self._wanted) + 1, 0
        failure: StoreError | IntegrityError
        while True:
            try:
                missing = self._missing(place, staging)
                if not missing:
                    return
                if len(missing) < fewest:
                    fewest, tries = len(missing), 0
                failure = IntegrityError(
                    "what arrived is not what was sent",
                    where=self._where,
                    hint="push again; if that does not help, something on the way changes what passes",
                )
                for name, first, last in _runs(missing):
                    self._send(f"{staging}/{name}", name, first, last)
            except BrokenError as error:
                failure = error
                sleep(0.2 * 2**tries)
            except StoreError:
                # Another push that publishes the release takes the folder away under this one's hands.
                if not ask(self._shell, self._where, _PUBLISHED, place):
                    raise
                return
            tries += 1
            if tries == ATTEMPTS:
                raise failure

    def _missing(self, place: str, staging: str) -> list[_Segment]:
        """Return the segments that are not there as they should be; publish the release if all are."""
        sizes = [word for name, size in self._sizes.items() for word in (name, str(size))]
        said = ask(self._shell, self._where, _LOOK, place, staging, str(BLOCKS), *sizes).decode()
        if said == "there\n":
            return []
        lines = (line.split(" ", 2) for line in said.splitlines())
        found = {(name, int(number)): digest for digest, number, name in lines}
        missing = [segment for segment, digest in self._wanted.items() if found.get(segment) != digest]
        if not missing:
            trash = f"{staging}.{uuid.uuid4().hex}"
            ask(self._shell, self._where, _PUBLISH, place, staging, trash)
        return missing

    def _send(self, path: str, name: str, first: int, last: int) -> None:
        start = first * SEGMENT
        count = min(self._sizes[name], (last + 1) * SEGMENT) - start
        source = self._read(name, start, count)
        ask(self._shell, self._where, _SEND, path, str(first * BLOCKS), str(count), source=source)

    def _read(self, name: str, start: int, count: int) -> Iterator[bytes]:
        with (self._folder / name).open("rb") as file:
            file.seek(start)
            while count and (data := file.read(min(_READ, count))):
                count -= len(data)
                self.sent += len(data)
                yield data


def _digests(folder: Path, name: str) -> Iterator[tuple[_Segment, str]]:
    """Yield every segment of a file with its SHA-256."""
    with (folder / name).open("rb") as file:
        number = 0
        while data := file.read(_READ):
            digest, left = hashlib.sha256(data), SEGMENT - len(data)
            while left and (data := file.read(min(_READ, left))):
                digest.update(data)
                left -= len(data)
            yield (name, number), digest.hexdigest()
            number += 1


def _runs(segments: list[_Segment]) -> Iterator[tuple[str, int, int]]:
    """Yield neighbours among ordered segments as one: name, first and last number."""
    name, first = segments[0]
    last = first
    for other, number in segments[1:]:
        if (other, number) != (name, last + 1):
            yield name, first, last
            name, first = other, number
        last = number
    yield name, first, last
