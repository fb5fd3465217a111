from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import deployer.archive.digests as digests_module
from deployer.archive import DigestCache

SHA = "a" * 64
SECOND = 10**9


class Stat:
    """A file's status with given times."""

    def __init__(self, ctime_ns: int = 100 * SECOND + 1, **changes: int) -> None:
        self.st_size, self.st_mtime_ns, self.st_ctime_ns, self.st_ino = 5, 7, ctime_ns, 9
        for name, value in changes.items():
            setattr(self, name, value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "digests.json"


def test_the_next_process_finds_a_recorded_digest(path):
    cache = DigestCache(path)
    cache.record(Path("/w.pt"), Stat(), SHA, read_at=200 * SECOND)
    assert cache.lookup(Path("/w.pt"), Stat()) == SHA
    cache.save()
    assert DigestCache(path).lookup(Path("/w.pt"), Stat()) == SHA
    assert DigestCache(path).lookup(Path("/other.pt"), Stat()) is None
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("field", ["st_size", "st_mtime_ns", "st_ctime_ns", "st_ino"])
def test_a_changed_file_has_no_digest(path, field):
    cache = DigestCache(path)
    cache.record(Path("/w.pt"), Stat(), SHA, read_at=200 * SECOND)
    changed = Stat()
    setattr(changed, field, getattr(changed, field) + 1)
    assert cache.lookup(Path("/w.pt"), changed) is None


@pytest.mark.parametrize(
    ("ctime_ns", "age", "kept"),
    [
        (100 * SECOND + 1, SECOND // 10, True),
        (100 * SECOND + 1, SECOND // 10 - 1, False),
        (100 * SECOND + 1, -SECOND, False),
        (100 * SECOND, 3 * SECOND, True),
        (100 * SECOND, 3 * SECOND - 1, False),
    ],
)
def test_a_file_that_has_just_changed_is_read_again(path, ctime_ns, age, kept):
    cache = DigestCache(path)
    cache.record(Path("/w.pt"), Stat(ctime_ns), SHA, read_at=ctime_ns + age)
    assert (cache.lookup(Path("/w.pt"), Stat(ctime_ns)) == SHA) is kept


def test_a_change_with_the_same_size_and_mtime_is_noticed(path, tmp_path):
    file = tmp_path / "w.pt"
    file.write_bytes(b"one")
    status = file.stat()
    cache = DigestCache(path, clock=lambda: status.st_ctime_ns + 10 * SECOND)
    cache.record(file, status, SHA, read_at=cache.clock())
    file.write_bytes(b"two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_mtime_ns == status.st_mtime_ns
    assert cache.lookup(file, file.stat()) is None


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000,
        b'{"format":"kdeploy digests 1","files":{"/w.pt":[5,7,100000000001,9,"xyz"]}}',
        b'{"format":"kdeploy digests 1","files":{"/w.pt":[5,7,100000000001,9]}}',
        b'{"format":"another 1","files":{"/w.pt":[5,7,100000000001,9,"' + SHA.encode() + b'"]}}',
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_cache_is_replaced(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    cache = DigestCache(path)
    assert cache.lookup(Path("/w.pt"), Stat()) is None
    cache.record(Path("/w.pt"), Stat(), SHA, read_at=200 * SECOND)
    cache.save()
    assert DigestCache(path).lookup(Path("/w.pt"), Stat()) == SHA


def test_a_cache_that_cannot_be_written_is_not_an_error(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "digests.json").mkdir()
    for path in (tmp_path / "file" / "digests.json", tmp_path / "digests.json"):
        cache = DigestCache(path)
        cache.record(Path("/w.pt"), Stat(), SHA, read_at=200 * SECOND)
        cache.save()
        assert cache.lookup(Path("/w.pt"), Stat()) == SHA
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digests.json", "file"]


def test_a_name_that_is_not_utf8_is_not_cached(path):
    cache = DigestCache(path)
    cache.record(Path(os.fsdecode(b"/\xff")), Stat(), SHA, read_at=200 * SECOND)
    cache.save()
    assert DigestCache(path).lookup(Path("/w.pt"), Stat()) is None


def test_without_changes_the_cache_is_not_written(path):
    cache = DigestCache(path)
    assert cache.lookup(Path("/w.pt"), Stat()) is None
    cache.save()
    assert not path.parent.exists()


def test_two_processes_keep_each_others_changes(path):
    caches = [DigestCache(path), DigestCache(path)]
    for number, cache in enumerate(caches):
        cache.record(Path(f"/{number}"), Stat(), SHA, read_at=200 * SECOND)
    for cache in caches:
        cache.save()
    last = DigestCache(path)
    assert [last.lookup(Path(f"/{number}"), Stat()) for number in range(2)] == [SHA, SHA]


def test_a_forgotten_digest_is_gone(path):
    cache = DigestCache(path)
    cache.forget(Path("/none"))
    cache.record(Path("/w.pt"), Stat(), SHA, read_at=200 * SECOND)
    cache.save()
    other = DigestCache(path)
    other.forget(Path("/w.pt"))
    assert other.lookup(Path("/w.pt"), Stat()) is None
    other.save()
    assert DigestCache(path).lookup(Path("/w.pt"), Stat()) is None


def test_the_oldest_entries_are_dropped(path, monkeypatch):
    monkeypatch.setattr(digests_module, "ENTRIES", 3)
    for name in "abcda":
        cache = DigestCache(path)
        cache.record(Path(f"/{name}"), Stat(), SHA, read_at=200 * SECOND)
        cache.save()
    assert list(json.loads(path.read_bytes())["files"]) == ["/c", "/d", "/a"]


def test_relative_paths_are_stored_as_absolute(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = DigestCache(path)
    cache.record(Path("w.pt"), Stat(), SHA, read_at=200 * SECOND)
    assert cache.lookup(tmp_path / "w.pt", Stat()) == SHA
