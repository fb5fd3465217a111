"""What a stored release consists of, compared with its record, whichever store holds it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deployer.archive import check_outline, verify_archive
from deployer.errors import IntegrityError
from deployer.release import Release, decode_release
from deployer.store.interface import PROPERTIES, RECORD


def read_record(content: bytes, name: str, release_id: str, *, where: str) -> Release:
    """Return the release of a `release.json`. Raises IntegrityError where it is another one's, or broken."""
    release = decode_release(content, where=where)
    if (release.name, release.id) != (name, release_id):
        raise IntegrityError(
            f"it belongs to {release.label}, not to {name}/{release_id}",
            where=where,
            hint="a release was moved or copied to another name: undo that",
        )
    return release


def archive_name(release: Release) -> str:
    """Return the name of the model archive below the release."""
    return f"model-store/{release.archive.file_name}"


class Contents:
    """The files that a store found below a release; `where` names the release in errors."""

    def __init__(self, release: Release, *, where: str) -> None:
        self._release = release
        self._where = where
        self._hint = f"remove what is below {where} and push again"

    def compare_names(self, found: Iterable[str]) -> None:
        """Raise IntegrityError unless just the release's files are there."""
        expected = {str(PROPERTIES), archive_name(self._release), RECORD}
        for name in sorted(expected ^ set(found)):
            what = "is missing" if name in expected else "does not belong to the release"
            raise self.damaged(f"{name} {what}")

    def compare_properties(self, content: bytes) -> None:
        """Raise IntegrityError unless these are the release's config.properties."""
        if content != self._release.config_properties.encode():
            raise self.damaged("config.properties was changed")

    def compare_outline(self, tail: bytes, size: int) -> None:
        """Raise IntegrityError unless an archive of `size` bytes that ends in `tail` can be the release's."""
        try:
            check_outline(tail, size, self._release.archive.members)
        except IntegrityError as error:
            raise self.damaged(f"{archive_name(self._release)}: {error.what}") from error

    def compare_archive(self, copy: Path) -> None:
        """Raise IntegrityError unless a local copy of the archive has the release's bytes."""
        try:
            verify_archive(copy, self._release.archive.members)
        except IntegrityError as error:
            raise self.damaged(f"{archive_name(self._release)}: {error.what}") from error

    def damaged(self, what: str) -> IntegrityError:
        """Return the error that a release which differs from its record stands for."""
        return IntegrityError(what, where=self._where, hint=self._hint)
