"""An upload to a claim that breaks, is killed or loses bytes goes on, and sends no more than it must."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from deployer.archive import Archive, DigestCache, Member, write_archive
from deployer.config import Config, Model, Store
from deployer.errors import DiskFullError, IntegrityError, StoreError
from deployer.release import Release, plan_release
from deployer.store import Stored, shell_upload
from deployer.store.pvc import ClaimStore
from deployer.store.volume_shell import BrokenError
from tests.clocks import patience
from tests.shell import FolderShell

SIZE = 6_000_000
SEGMENT = 1 << 20
ARCHIVE = "model-store/digits.mar"


class Line(FolderShell):
    """A shell whose line breaks after so many bytes of stdin, or loses or changes some, as a test asks."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.breaks: list[int] = []  # of the next runs with more stdin, after how much the line breaks
        self.loses: list[int] = []  # of the next runs with stdin, the bytes at its end that never arrive
        self.dies = False  # in place of breaking, kill this process

    def passing(self, source: Iterable[bytes]) -> Iterator[bytes]:
        data = b"".join(source)
        if self.breaks and self.breaks[0] < len(data):
            yield data[: self.breaks.pop(0)]
            if self.dies:
                os.kill(os.getpid(), 9)
            raise BrokenError("the line broke")
        yield data[: len(data) - self.loses.pop(0)] if data and self.loses else data


Push = Callable[[], tuple[Release, Stored]]


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_upload, "BLOCKS", 1)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path / "claim")


@pytest.fixture
def store(line: Line, tmp_path: Path) -> ClaimStore:
    return ClaimStore(Store(uri="pvc://models/a"), line, tmp_path, patience=patience())


@pytest.fixture
def push(store: ClaimStore, tmp_path: Path) -> Push:
    return lambda: put(store, tmp_path)


def put(store: ClaimStore, folder: Path) -> tuple[Release, Stored]:
    weights = random.Random(7).randbytes(SIZE)
    with store.stage() as staging:
        member = Member(name="w.pt", size=SIZE, sha256=None, source=weights)
        archive = Archive(name="digits", version="1.0", format="zip-store", members=(member,))
        written = write_archive(archive, staging.archive_path("digits.mar"), DigestCache(folder / "d.json"))
        release = plan_release(Config(model=Model(name="digits", version="1.0", handler="h")), written)
        return release, store.put(release, staging)


def staged(line: Line) -> Path:
    (found,) = (line.folder / "a/.staging").glob("digits.1.0-*")
    return found


def test_a_line_that_breaks_anywhere_costs_a_segment_each_time(
    store: ClaimStore, line: Line, push: Push
) -> None:
    line.breaks = [random.Random(1).randrange(SIZE) for _ in range(4)]
    release, stored = push()
    store.verify(release)
    assert stored.bytes_written >= line.received
    assert line.received < SIZE + 5 * SEGMENT


def test_a_line_that_always_breaks_is_given_up_and_gone_on_with(
    store: ClaimStore, line: Line, push: Push
) -> None:
    line.breaks = [2_500_000, *[1000] * 99]
    with pytest.raises(BrokenError, match="the line broke"):
        push()
    assert store.releases() == []
    line.breaks, line.received = [], 0
    release, _ = push()
    store.verify(release)
    assert line.received < SIZE - 2 * SEGMENT + SEGMENT


_KILLED = """
import sys
from pathlib import Path
from deployer.config import Store
from deployer.store import shell_upload
from deployer.store.pvc import ClaimStore
from tests.stores.test_claim import Line, put
shell_upload.BLOCKS = 1
folder = Path(sys.argv[1])
line = Line(folder / "claim")
line.dies, line.breaks = True, [int(sys.argv[2])]
put(ClaimStore(Store(uri="pvc://models/a"), line, folder), folder)
"""


def test_killed_at_any_byte_it_goes_on(store: ClaimStore, line: Line, push: Push, tmp_path: Path) -> None:
    for moment in (1, SEGMENT - 1, SEGMENT, 2_345_678):
        died = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path), str(moment)], check=False)
        assert died.returncode == -9
        assert store.releases() == []
    # The last of them had its way from the second segment on.
    release, _ = push()
    store.verify(release)
    assert line.received < SIZE - 2 * SEGMENT
    assert [path.name for path in (line.folder / "a/.staging").iterdir()] == []


def test_a_tail_that_is_lost_in_silence_is_found_and_sent_again(
    store: ClaimStore, line: Line, push: Push
) -> None:
    line.loses = [300_000]
    release, _ = push()
    store.verify(release)
    assert SIZE < line.received < SIZE + SEGMENT


def test_a_line_that_always_loses_is_said(store: ClaimStore, line: Line, push: Push) -> None:
    line.loses = [1] * 999
    with pytest.raises(IntegrityError, match="differ from the ones that were sent"):
        push()
    assert store.releases() == []


@pytest.mark.parametrize("harm", ["corrupt", "hole", "longer"])
def test_what_was_harmed_meanwhile_is_sent_again_and_nothing_else(
    store: ClaimStore, line: Line, push: Push, harm: str
) -> None:
    line.breaks = [4 * SEGMENT + 10, *[0] * 99]
    with pytest.raises(BrokenError):
        push()
    with (staged(line) / ARCHIVE).open("r+b") as file:
        if harm == "longer":
            file.truncate(SIZE * 2)
        else:
            file.seek(SEGMENT + 5)
            file.write(bytes(100) if harm == "hole" else b"x" * 100)
    line.breaks, line.received = [], 0
    release, _ = push()
    store.verify(release)
    left = SIZE if harm == "longer" else SIZE - 3 * SEGMENT
    assert left < line.received < left + SEGMENT


def test_a_release_that_is_there_costs_one_run(store: ClaimStore, line: Line, push: Push) -> None:
    release, _ = push()
    line.runs = line.received = 0
    assert store.find("digits", release.id) == release
    assert line.runs == 1
    assert push()[1].bytes_written == 0
    assert (line.runs, line.received) == (2, 0)


class Deaf(Line):
    """Its answers break off: with an error, or as if they had been whole."""

    def __init__(self, folder: Path, *, silent: bool) -> None:
        super().__init__(folder)
        self.silent, self.hears = silent, [10**9]

    def run(self, script: str, *arguments: str, source: Iterable[bytes] = ()) -> Iterator[bytes]:
        left = self.hears.pop(0) if self.hears else 10**9
        for data in super().run(script, *arguments, source=source):
            yield data[:left]
            left -= len(data)
            if left <= 0:
                if not self.silent:
                    raise BrokenError("the line broke")
                return


@pytest.mark.parametrize("silent", [False, True])
def test_a_download_goes_on_and_no_answer_is_half_believed(tmp_path: Path, silent: bool) -> None:
    line = Deaf(tmp_path / "claim", silent=silent)
    store = ClaimStore(Store(uri="pvc://models/a"), line, tmp_path, patience=patience())
    release, _ = put(store, tmp_path)
    line.hears = [5, 10**9, 3, 10**9, 1000, 3_000_000, 70_000, 1, 1, 1]
    store.verify(release)
    line.hears = [10] * 3
    assert store.releases() == [release]
    line.hears = [1] * 99
    with pytest.raises(BrokenError):
        store.releases()


@pytest.mark.parametrize("prefix", ["-rf/a=b+c", "--", ""])
def test_no_prefix_is_an_option(line: Line, tmp_path: Path, prefix: str) -> None:
    store = ClaimStore(Store(uri=f"pvc://models/{prefix}"), line, tmp_path)
    release, stored = put(store, tmp_path)
    assert stored.uri == "/".join(word for word in ("pvc://models", prefix, release.label) if word) + "/"
    assert store.releases("digits") == [release]
    store.verify(release)
    assert store.delete(release) == stored.bytes_written
    assert store.releases() == []


def test_what_lies_about_in_the_volume_is_no_release(store: ClaimStore, line: Line, push: Push) -> None:
    release, _ = push()
    for name in ("a b/1.0-0123456789ab", "x\ny/1.0-0123456789ab", "digits/not an id", "UP/1.0-0123456789ab"):
        (line.folder / "a" / name).mkdir(parents=True)
        (line.folder / "a" / name / "release.json").write_text("{}")
    assert store.releases() == [release]


def test_uploads_that_nobody_goes_on_with_are_removed_in_time(line: Line, push: Push) -> None:
    old, young = (line.folder / "a/.staging" / name for name in ("digits.old", "digits.young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
    week = time.time() - 9 * 86400
    os.utime(old, (week, week))
    push()
    assert (old.exists(), young.exists()) == (False, True)


def test_a_full_volume(line: Line, push: Push, tmp_path: Path) -> None:
    line.folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(line.folder)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("a small tmpfs can be mounted by root only")
    try:
        with pytest.raises(DiskFullError, match="the volume is full") as caught:
            push()
        assert caught.value.where.startswith("pvc://models/a/digits/")
    finally:
        subprocess.run(["umount", str(line.folder)], check=True)


def test_an_image_without_the_programs(store: ClaimStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Line.run
    monkeypatch.setattr(Line, "run", lambda self, text, *words, **_: run(self, f"PATH=/\n{text}", *words))
    with pytest.raises(StoreError, match="lacks a program") as caught:
        store.releases()
    assert "store.helper-image" in (caught.value.hint or "")
