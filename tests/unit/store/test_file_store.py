"""Comparing a stored release with its record: the error names the first difference, and the release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deployer.archive import Archive, DigestCache, Member, write_archive
from deployer.config import Config, Model
from deployer.errors import IntegrityError
from deployer.release import Release, encode_release, plan_release
from deployer.store.file_store import archive_name, read_record
from deployer.store.folder import FolderStore

WHERE = "s3://models/digits/1.0-0123456789ab/"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def release(store: FolderStore, tmp_path: Path) -> Release:
    """A stored release of one small file."""
    member = Member(name="w.pt", size=7, sha256=None, source=b"weights")
    archive = Archive(name="digits", version="1.0", format="zip-store", members=(member,))
    with store.stage() as staging:
        digests = DigestCache(tmp_path / "digests.json")
        written = write_archive(archive, staging.archive_path("digits.mar"), digests)
        release = plan_release(Config(model=Model(name="digits", version="1.0", handler="h")), written)
        store.put(release, staging)
    return release


@pytest.fixture
def folder(store: FolderStore, release: Release) -> Path:
    return store.folder / release.name / release.id


def test_a_record_of_another_release_is_refused(release: Release) -> None:
    content = encode_release(release)
    assert read_record(content, "digits", release.id, where=WHERE) == release
    for name, release_id in (("others", release.id), ("digits", "1.0-0123456789ab")):
        with pytest.raises(IntegrityError) as caught:
            read_record(content, name, release_id, where=WHERE)
        what = f"release.json belongs to digits/{release.id}, not to {name}/{release_id}"
        assert (caught.value.what, caught.value.where) == (what, WHERE)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda folder: (folder / "model-store/digits.mar").unlink(), "model-store/digits.mar is missing"),
        (
            lambda folder: (folder / "model-store/x").touch(),
            "model-store/x does not belong to the release",
        ),
        (
            lambda folder: (folder / "config/config.properties").write_text("x=1\n"),
            "config.properties was changed",
        ),
    ],
)
def test_the_error_names_the_file_and_the_release(
    change: Callable[[Path], object], what: str, store: FolderStore, release: Release, folder: Path
) -> None:
    store.check(release)
    change(folder)
    for compare in (store.check, store.verify):
        with pytest.raises(IntegrityError) as caught:
            compare(release)
        assert (caught.value.what, caught.value.where) == (what, store.uri(release))
        assert caught.value.hint == f"Remove `{store.uri(release)}` and push the release again."


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda data: data.replace(b"w.pt", b"x.pt"), "w.pt: missing"),
        (lambda data: data[:-1], ""),
        (lambda data: data + b"x", ""),
        (lambda data: data.replace(b"weights", b"wEights"), "w.pt: "),
    ],
    ids=["another name", "truncated", "longer", "other content"],
)
def test_the_error_names_the_changed_member_of_an_archive(
    change: Callable[[bytes], bytes], what: str, store: FolderStore, release: Release, folder: Path
) -> None:
    path = folder / archive_name(release)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(IntegrityError) as caught:
        store.check(release)
    assert caught.value.what.startswith(f"model-store/digits.mar: {what}")
    assert caught.value.where == store.uri(release)
