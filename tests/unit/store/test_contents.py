"""What a store found below a release, compared with its record: the first difference is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deployer.archive import Archive, DigestCache, Member, write_archive
from deployer.config import Config, Model
from deployer.errors import IntegrityError
from deployer.release import Release, encode_release, plan_release
from deployer.store.contents import Contents, archive_name, read_record

WHERE = "s3://models/digits/1.0-0123456789ab/"


@pytest.fixture
def mar(tmp_path: Path) -> Path:
    return tmp_path / "digits.mar"


@pytest.fixture
def release(mar: Path, tmp_path: Path) -> Release:
    """A release of one small file, whose archive is at `mar`."""
    member = Member(name="w.pt", size=7, sha256=None, source=b"weights")
    archive = Archive(name="digits", version="1.0", format="zip-store", members=(member,))
    written = write_archive(archive, mar, DigestCache(tmp_path / "digests.json"))
    return plan_release(Config(model=Model(name="digits", version="1.0", handler="h")), written)


@pytest.fixture
def contents(release: Release) -> Contents:
    return Contents(release, where=WHERE)


def test_a_record_is_read_for_the_release_that_it_is_of(release: Release) -> None:
    content = encode_release(release)
    assert read_record(content, "digits", release.id, where=WHERE) == release
    for name, release_id in (("others", release.id), ("digits", "1.0-0123456789ab")):
        with pytest.raises(IntegrityError) as caught:
            read_record(content, name, release_id, where=WHERE)
        assert caught.value.what == f"it belongs to digits/{release.id}, not to {name}/{release_id}"
        assert caught.value.where == WHERE


def test_just_the_files_of_a_release_belong_to_it(release: Release, contents: Contents) -> None:
    files = ["release.json", "config/config.properties", archive_name(release)]
    contents.compare_names(files)
    for found, what in (
        (files[:2], "model-store/digits.mar is missing"),
        ([*files, "model-store/x"], "model-store/x does not belong to the release"),
    ):
        with pytest.raises(IntegrityError) as caught:
            contents.compare_names(found)
        assert (caught.value.what, caught.value.where) == (what, WHERE)
        assert caught.value.hint == f"remove what is below {WHERE} and push again"


def test_config_properties_are_those_of_the_record(release: Release, contents: Contents) -> None:
    contents.compare_properties(release.config_properties.encode())
    with pytest.raises(IntegrityError, match=r"config\.properties was changed"):
        contents.compare_properties(release.config_properties.encode() + b"\n")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda data: data.replace(b"w.pt", b"x.pt"), "model-store/digits.mar: w.pt: missing"),
        (lambda data: data[:-1], "model-store/digits.mar: "),
        (lambda data: data + b"x", "model-store/digits.mar: "),
    ],
    ids=["another name", "cut short", "longer"],
)
def test_an_archive_is_seen_by_its_end_to_be_anothers(
    change: Callable[[bytes], bytes], what: str, mar: Path, contents: Contents
) -> None:
    data = mar.read_bytes()
    contents.compare_outline(data, len(data))
    changed = change(data)
    with pytest.raises(IntegrityError) as caught:
        contents.compare_outline(changed, len(changed))
    assert caught.value.what.startswith(what)
    assert caught.value.where == WHERE


def test_an_archive_has_the_bytes_of_the_record(mar: Path, contents: Contents) -> None:
    contents.compare_archive(mar)
    mar.write_bytes(mar.read_bytes().replace(b"weights", b"wEights"))
    contents.compare_outline(mar.read_bytes(), mar.stat().st_size)  # which sees no difference
    with pytest.raises(IntegrityError) as caught:
        contents.compare_archive(mar)
    assert caught.value.what == ("model-store/digits.mar: w.pt: the content differs from the pushed file")
    assert caught.value.where == WHERE, "the release, not the copy"
