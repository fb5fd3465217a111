from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import shutil
import subprocess
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from msgspec.structs import replace

import deployer.archive.layout as layout
import deployer.archive.partial as partial_module
import deployer.archive.write as write_module
from deployer.archive import DigestCache, digest_archive, verify_archive, write_archive
from deployer.archive.stream import BLOCK, BUFFERS, pump, sums_of
from deployer.errors import ArchiveError, DiskFullError

FORMATS = ["zip-store", "default", "tgz", "no-archive"]
CONTENT = {"MAR-INF/MANIFEST.json": b"{}", "a/b/c.txt": b"abc" * 1000, "empty": b"", "ü.txt": b"u"}


def written(destination: Path) -> dict[str, bytes]:
    """Read an archive of any format with the standard library."""
    if destination.is_dir():
        files = [path for path in destination.rglob("*") if path.is_file()]
        return {path.relative_to(destination).as_posix(): path.read_bytes() for path in files}
    if tarfile.is_tarfile(destination):
        with tarfile.open(destination) as tar:
            return {member.name.removeprefix("m/"): tar.extractfile(member).read() for member in tar}
    with zipfile.ZipFile(destination) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("archive_format", FORMATS)
def test_every_format_contains_the_members(tmp_path, archive, digests, archive_format):
    large = tmp_path / "large.bin"
    large.write_bytes(os.urandom(BLOCK * (BUFFERS + 3) + 7))
    planned = archive({**CONTENT, "large.bin": large}, archive_format)
    reported = []
    sealed = write_archive(planned, tmp_path / planned.file_name, digests, progress=reported.append)
    expected = {**CONTENT, "large.bin": large.read_bytes()}
    assert written(tmp_path / planned.file_name) == expected
    assert [(entry.name, entry.size, entry.sha256) for entry in sealed.records] == [
        (name, len(content), sums_of(content).sha256) for name, content in sorted(expected.items())
    ]
    assert sum(reported) == planned.size
    assert len(reported) > BUFFERS
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["large.bin", planned.file_name, "state"][: 3 if (tmp_path / "state").exists() else 2]
    )


@pytest.mark.parametrize("archive_format", FORMATS[:3])
def test_folder_time_and_mode_do_not_change_the_bytes(tmp_path, archive, digests, archive_format):
    made = []
    for turn, when in (("one", 10**9), ("two", 1)):
        (tmp_path / turn).mkdir()
        source = tmp_path / turn / "w.pt"
        source.write_bytes(b"weights" * 99)
        source.chmod(0o600 if turn == "one" else 0o777)
        os.utime(source, (when, when))
        write_archive(archive({**CONTENT, "w.pt": source}, archive_format), tmp_path / turn / "m", digests)
        made.append((tmp_path / turn / "m").read_bytes())
    assert made[0] == made[1]


def test_a_stored_archive_is_the_same_on_any_machine(tmp_path, archive, digests):
    write_archive(archive({"a": b"one", "b/c": b"two"}), tmp_path / "m.mar", digests)
    assert sums_of((tmp_path / "m.mar").read_bytes()).sha256 == (
        "85e670d55db9f9dd254884786b338a279d0570e5c9def280a9e646a08ab36d89"
    )
    with zipfile.ZipFile(tmp_path / "m.mar") as made:
        for info in made.infolist():
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.external_attr >> 16 == 0o100644
            assert info.compress_type == zipfile.ZIP_STORED


def test_a_tar_contains_no_data_of_the_machine(tmp_path, archive, digests):
    write_archive(archive(CONTENT, "tgz"), tmp_path / "m.tar.gz", digests)
    assert (tmp_path / "m.tar.gz").read_bytes()[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    with tarfile.open(tmp_path / "m.tar.gz") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert (member.uname, member.gname) == ("", "")
            assert member.name.startswith("m/")


def test_an_existing_file_is_replaced_and_a_folder_is_not(tmp_path, archive, digests):
    (tmp_path / "m.mar").write_bytes(b"old")
    write_archive(archive(CONTENT), tmp_path / "m.mar", digests)
    assert written(tmp_path / "m.mar") == CONTENT
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").touch()
    with pytest.raises(ArchiveError, match="does not replace folders") as caught:
        write_archive(archive(CONTENT, "no-archive"), tmp_path / "m", digests)
    assert caught.value.where == str(tmp_path / "m")
    assert list(tmp_path.glob("m/*")) == [tmp_path / "m" / "mine"]


@pytest.mark.parametrize("place", ["missing/m.mar", "file/m.mar", "folder", "n" * 300])
def test_invalid_destinations(tmp_path, archive, digests, place):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArchiveError, match="cannot write the archive") as caught:
        write_archive(archive(CONTENT), tmp_path / place, digests)
    assert caught.value.where == str(tmp_path / place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("archive_format", FORMATS)
@pytest.mark.parametrize(
    "change", ["grows", "shrinks", "is touched", "was larger", "was other", "is gone", "is a pipe"]
)
def test_a_file_that_changes(tmp_path, archive, archive_format, change):
    source = tmp_path / "w.pt"
    source.write_bytes(b"x" * (2 * BLOCK))
    digests = DigestCache(tmp_path / "digests.json", clock=lambda: 2 * 10**18)
    planned = archive({"a": b"first", "w.pt": source}, archive_format)
    if change == "was other":
        digest_archive(planned, digests)
        first, weights = planned.members
        planned = replace(planned, members=(first, replace(weights, sha256="0" * 64)))

    def progress(count: int) -> None:
        if change == "grows":
            with source.open("ab") as file:
                file.write(b"more")
        elif change == "shrinks":
            os.truncate(source, BLOCK)
        elif change == "is touched":
            os.utime(source, (5, count))

    if change == "was larger":
        os.truncate(source, BLOCK)
    elif change in ("is gone", "is a pipe"):
        source.unlink()
        if change == "is a pipe":
            os.mkfifo(source)
    with pytest.raises(ArchiveError) as caught:
        write_archive(planned, tmp_path / "out", digests, progress=progress)
    assert caught.value.where == str(source)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))
    if source.is_file():
        assert "changed while it was read" in caught.value.what
        assert DigestCache(tmp_path / "digests.json").lookup(source, source.stat()) is None


def test_a_read_error_in_the_middle_of_a_file(tmp_path, archive, digests, monkeypatch):
    source = tmp_path / "w.pt"
    source.write_bytes(b"x" * (2 * BLOCK))

    class Failing:
        def __init__(self, file):
            self.file, self.turn = file, 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def fileno(self):
            return self.file.fileno()

        def readinto(self, view):
            self.turn += 1
            if self.turn > 1:
                raise OSError(errno.EIO, "Input/output error")
            return self.file.readinto(view)

    real = write_module.open_source
    monkeypatch.setattr(write_module, "open_source", lambda path: Failing(real(path)))
    with pytest.raises(ArchiveError, match=r"cannot read w\.pt: Input/output error"):
        write_archive(archive({"w.pt": source}), tmp_path / "m.mar", digests)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pt"]


def test_an_exception_of_take_ends_the_second_thread():
    def take(view):
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        pump(lambda view: len(view), take, 10 * BLOCK)
    assert threading.active_count() == before


def test_a_source_with_short_reads():
    content = os.urandom(3 * BLOCK)
    for size in (0, 1, 1000, 3 * BLOCK):
        rest = iter([content[at : at + 70_000] for at in range(0, size, 70_000)])
        taken = bytearray()

        def read(view, rest=rest):
            piece = next(rest, b"")[: len(view)]
            view[: len(piece)] = piece
            return len(piece)

        sums = pump(read, taken.extend, size)
        assert sums == sums_of(bytes(taken))


def test_digests_without_writing(tmp_path, archive):
    source = tmp_path / "w.pt"
    source.write_bytes(b"weights")
    planned = archive({"a": b"one", "w.pt": source})
    digests = DigestCache(tmp_path / "digests.json", clock=lambda: 2 * 10**18)
    sealed = digest_archive(planned, digests)
    assert sealed.digest == write_archive(planned, tmp_path / "m.mar", digests).digest
    assert digest_archive(sealed, digests) == sealed
    assert DigestCache(tmp_path / "digests.json").lookup(source, source.stat()) == sealed.members[1].sha256


def test_only_abandoned_temporaries_are_removed(tmp_path, archive, digests):
    kept = [
        ".m.mar.partial",
        f".m.mar.{'g' * 32}.partial",
        f".n.mar.{'0' * 32}.partial",
        f"m.mar.{'0' * 32}.partial",
    ]
    for name in kept:
        (tmp_path / name).touch()
    link = f".m.mar.{'1' * 32}.partial"
    (tmp_path / link).symlink_to(kept[0])
    (tmp_path / f".m.mar.{'0' * 32}.partial").touch()
    write_archive(archive(CONTENT), tmp_path / "m.mar", digests)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, link, "m.mar"}


def test_a_temporary_that_is_removed_before_it_is_locked(tmp_path, archive, digests, monkeypatch):
    real, swept = fcntl.flock, []

    def flock(descriptor, operation):
        if not swept:
            swept.extend(tmp_path.glob(".m.mar.*.partial"))
            swept[0].unlink()
        return real(descriptor, operation)

    monkeypatch.setattr(partial_module.fcntl, "flock", flock)
    write_archive(archive(CONTENT), tmp_path / "m.mar", digests)
    assert swept
    assert written(tmp_path / "m.mar") == CONTENT


def test_a_file_system_without_locks(tmp_path, archive, digests, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(partial_module.fcntl, "flock", flock)
    perhaps_alive = tmp_path / f".m.mar.{'0' * 32}.partial"
    perhaps_alive.touch()
    write_archive(archive(CONTENT), tmp_path / "m.mar", digests)
    assert perhaps_alive.exists()
    assert written(tmp_path / "m.mar") == CONTENT


@contextlib.contextmanager
def small_disk(folder: Path, size: int):
    """Mount a tmpfs, or if that is not allowed, limit the size of files, which fails in the same way."""
    folder.mkdir()
    mounted = os.getuid() == 0 and shutil.which("mount") and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode  # fmt: skip
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if not mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("reserve", [True, False])
@pytest.mark.parametrize("archive_format", FORMATS)
def test_a_full_disk(tmp_path, archive, digests, monkeypatch, archive_format, reserve):
    if not reserve:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    source = tmp_path / "w.pt"
    source.write_bytes(os.urandom(3 * BLOCK))
    planned = archive({"w.pt": source}, archive_format)
    with small_disk(tmp_path / "disk", BLOCK):
        with pytest.raises(DiskFullError, match=r"needs 786,\d{3} bytes, [\d,]+ are free") as caught:
            write_archive(planned, tmp_path / "disk" / "m", digests)
        assert caught.value.where == str(tmp_path / "disk" / "m")
        assert list((tmp_path / "disk").iterdir()) == []


def test_a_limit_on_the_size_of_files(tmp_path, archive, digests):
    source = tmp_path / "w.pt"
    source.write_bytes(bytes(3 * BLOCK))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK, before[1]))
    try:
        with pytest.raises(DiskFullError, match="file too large"):
            write_archive(archive({"w.pt": source}), tmp_path / "m.mar", digests)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pt"]


def test_space_that_cannot_be_reserved(tmp_path, archive, digests, monkeypatch):
    def fails(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", fails, raising=False)
    write_archive(archive(CONTENT), tmp_path / "m.mar", digests)
    assert written(tmp_path / "m.mar") == CONTENT


@pytest.mark.parametrize("limit", [1, 40, 3000, 3200, 10_000])
@pytest.mark.parametrize("archive_format", ["zip-store", "default"])
def test_numbers_over_the_limit_use_zip64(tmp_path, archive, digests, monkeypatch, archive_format, limit):
    """With limits below 4 GiB, so that sizes, offsets or the directory exceed them."""
    monkeypatch.setattr(layout, "_ZIP64_FROM", limit)
    sealed = write_archive(archive(CONTENT, archive_format), tmp_path / "m.mar", digests)
    assert written(tmp_path / "m.mar") == CONTENT
    verify_archive(tmp_path / "m.mar", sealed.records)


def test_more_than_65535_members(tmp_path, archive, digests):
    planned = archive({f"{number:05}": b"" for number in range(65_536)})
    sealed = write_archive(planned, tmp_path / "m.mar", digests)
    with zipfile.ZipFile(tmp_path / "m.mar") as made:
        assert len(made.infolist()) == 65_536
    verify_archive(tmp_path / "m.mar", sealed.records)
