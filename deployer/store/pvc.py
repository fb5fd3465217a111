"""A model store in a PersistentVolumeClaim, accessed through a shell in a Pod that mounts it.

    PATH/NAME/RELEASE-ID/config/config.properties
                         model-store/NAME.mar
                         release.json
    PATH/.staging/NAME.RELEASE-ID/         an upload

A release is moved to its place by one rename on the volume, so it is visible whole or not at all.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from deployer.config import Store
from deployer.patience import PATIENCE, Patience
from deployer.release import Release, encode_release
from deployer.storage_access import StorageAccess
from deployer.store.file_store import RemoteStore, archive_name, is_release, read_record
from deployer.store.interface import PROPERTIES, RECORD, Staging, Stored
from deployer.store.location import locate_claim
from deployer.store.shell_upload import Upload
from deployer.store.store_errors import disk_errors
from deployer.store.volume_shell import BrokenError, ExitError, Shell, run_script, volume_error

_READ = '[ ! -f "$1" ] || cat "$1"'

# Prints `SECONDS SIZE PATH` and the content of every record, without those that are removed meanwhile.
_LIST = """
[ -d "$1" ] || { echo .; exit; }
cd "$1"
if [ "$2" ]; then set -- "$2"/*/release.json; else set -- */*/release.json; fi
for file; do
  case $file in *[!-A-Za-z0-9._/]*) continue ;; esac
  changed=$(stat -c %Y "$file" 2>/dev/null) && text=$(cat "$file" 2>/dev/null) || continue
  printf '%s %s %s\\n%s\\n' "$changed" "${#text}" "$file" "$text"
done
"""

_FILES = """
[ -d "$1" ] || { echo .; exit; }
cd "$1"
find . ! -type d -exec stat -c '%s %n' {} +
"""

# The record is the newest file of a release that was not changed.
_OUTLINE = """
echo "$(find "$1" -newer "$2")"
tail -c "$3" "$1"
"""

_DELETE = """
place=$1 trash=$2
mkdir -p "${trash%/*}"
[ ! -e "$place" ] || mv "$place" "$trash"
rm -rf "$trash" "$3"
"""

_TAIL = 'tail -c +"$2" "$1"'


class ClaimStore(RemoteStore):
    """A model store in a claim. Implements deployer.store.ModelStore."""

    lookup_is_side_effect_free = False

    def __init__(self, config: Store, shell: Shell, root: Path, *, patience: Patience = PATIENCE) -> None:
        super().__init__(root)
        self.claim = locate_claim(config.uri)
        self._account = config.service_account
        self._shell = shell
        self._patience = patience

    def uri(self, release: Release) -> str:
        """Return the storage URI of a release, as KServe mounts it; it ends in `/`."""
        return f"{self.claim.uri}{release.label}/"

    def access(self) -> StorageAccess:
        """Return the ServiceAccount of the service: KServe mounts a claim, and needs no credentials."""
        return StorageAccess(account=self._account or "default")

    def find(self, name: str, release_id: str) -> Release | None:
        """Return a complete release, or None; this runs one script."""
        path = f"{name}/{release_id}/{RECORD}"
        content = self._run(_READ, f"{self.claim.folder}/{path}")
        return read_record(content, name, release_id, where=f"{self.claim.uri}{path}") if content else None

    def put(self, release: Release, staging: Staging) -> Stored:
        """Publish a staged release: send the segments that are missing, and compare all. Idempotent."""
        names = (str(PROPERTIES), archive_name(release), RECORD)
        with disk_errors("cannot send the release", staging.folder):
            (staging.folder / PROPERTIES).parent.mkdir(exist_ok=True)
            (staging.folder / PROPERTIES).write_bytes(release.config_properties.encode())
            (staging.folder / RECORD).write_bytes(encode_release(release))
            upload = Upload(self._shell, where=self.uri(release), folder=staging.folder, names=names)
            upload.run(self._place(release), self._uploading(release), self._patience)
        return Stored(self.uri(release), upload.sent)

    def close(self) -> None:
        """Release the claim: many volumes attach to one node at a time."""
        self._shell.close()

    def _place(self, release: Release) -> str:
        return f"{self.claim.folder}/{release.label}"

    def _uploading(self, release: Release) -> str:
        return f"{self.claim.folder}/.staging/{release.name}.{release.id}"

    def _remove(self, release: Release, names: Iterable[str]) -> None:  # noqa: ARG002
        uploading = self._uploading(release)
        self._run(_DELETE, self._place(release), f"{uploading}.{uuid.uuid4().hex}", uploading)

    def _dated(self, name: str | None) -> Iterator[tuple[float, Release]]:
        rest = self._run(_LIST, self.claim.folder, name or "")
        while rest:
            head, _, rest = rest.partition(b"\n")
            changed, size, path = head.decode().split(" ")
            content, rest = rest[: int(size)], rest[int(size) + 1 :]
            model, release_id, _ = path.split("/")
            if is_release(model, release_id):
                where = f"{self.claim.uri}{path}"
                yield int(changed), read_record(content, model, release_id, where=where)

    def _files(self, release: Release) -> dict[str, int]:
        lines = self._run(_FILES, self._place(release)).decode(errors="replace").splitlines()
        pairs = (line.partition(" ./") for line in lines)
        return {name: int(size) if size.isdigit() else 0 for size, _, name in pairs}

    def _read_file(self, release: Release, name: str) -> bytes:
        return self._run(_READ, f"{self._place(release)}/{name}")

    def _outline(self, release: Release, count: int, size: int) -> tuple[bytes, str | None]:  # noqa: ARG002
        place = self._place(release)
        answer = self._run(_OUTLINE, f"{place}/{archive_name(release)}", f"{place}/{RECORD}", str(count))
        newer, _, tail = answer.partition(b"\n")
        return tail, None if newer else release.archive.digest

    def _download(self, release: Release, name: str, copy: Path, size: int) -> None:
        """Write a file to a local copy; resume it if the stream breaks or ends too early."""
        path = f"{self._place(release)}/{name}"

        def resume() -> None:
            with copy.open("ab") as file:
                for data in self._shell.run(_TAIL, path, str(file.tell() + 1)):
                    file.write(data)
                if file.tell() != size:
                    raise BrokenError("the download is incomplete", where=self.claim.uri, hint="Retry.")

        with disk_errors("cannot download the release", copy):
            copy.touch()
            try:
                self._patience.again(resume, BrokenError, progress=lambda: copy.stat().st_size)
            except ExitError as error:
                raise volume_error(error, self.claim.uri) from error

    def _run(self, script: str, *arguments: str) -> bytes:
        work = partial(run_script, self._shell, self.claim.uri, script, *arguments)
        return self._patience.again(work, BrokenError)
