"""An upload to a claim that breaks, is killed or loses bytes resumes, and sends only what is missing."""

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


class FaultyShell(FolderShell):
    """A shell whose connection breaks after some bytes of stdin, or loses some of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        # One number for each of the next runs with stdin: how many bytes arrive before the connection breaks,
        # or how many are lost at the end.
        self.breaks: list[int] = []
        self.loses: list[int] = []
        self.dies = False  # kill this process instead of breaking

    def passing(self, source: Iterable[bytes]) -> Iterator[bytes]:
        data = b"".join(source)
        if self.breaks and self.breaks[0] < len(data):
            yield data[: self.breaks.pop(0)]
            if self.dies:
                os.kill(os.getpid(), 9)
            raise BrokenError("the connection broke")
        yield data[: len(data) - self.loses.pop(0)] if data and self.loses else data


Push = Callable[[], tuple[Release, Stored]]


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_upload, "BLOCKS", 1)


@pytest.fixture
def shell(tmp_path: Path) -> FaultyShell:
    return FaultyShell(tmp_path / "claim")


@pytest.fixture
def store(shell: FaultyShell, tmp_path: Path) -> ClaimStore:
    return ClaimStore(Store(uri="pvc://models/a"), shell, tmp_path, patience=patience())


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


def staged(shell: FaultyShell) -> Path:
    (found,) = (shell.folder / "a/.staging").glob("digits.1.0-*")
    return found


def test_a_broken_connection_costs_one_segment(store: ClaimStore, shell: FaultyShell, push: Push) -> None:
    shell.breaks = [random.Random(1).randrange(SIZE) for _ in range(4)]
    release, stored = push()
    store.verify(release)
    assert stored.bytes_written >= shell.received
    assert shell.received < SIZE + 5 * SEGMENT


def test_a_push_after_a_failed_push_resumes(store: ClaimStore, shell: FaultyShell, push: Push) -> None:
    shell.breaks = [2_500_000, *[1000] * 99]
    with pytest.raises(BrokenError, match="the connection broke"):
        push()
    assert store.releases() == []
    shell.breaks, shell.received = [], 0
    release, _ = push()
    store.verify(release)
    assert shell.received < SIZE - 2 * SEGMENT + SEGMENT


_KILLED = """
import sys
from pathlib import Path
from deployer.config import Store
from deployer.store import shell_upload
from deployer.store.pvc import ClaimStore
from tests.stores.test_claim import FaultyShell, put
shell_upload.BLOCKS = 1
folder = Path(sys.argv[1])
shell = FaultyShell(folder / "claim")
shell.dies, shell.breaks = True, [int(sys.argv[2])]
put(ClaimStore(Store(uri="pvc://models/a"), shell, folder), folder)
"""


def test_a_push_after_a_killed_push_resumes(
    store: ClaimStore, shell: FaultyShell, push: Push, tmp_path: Path
) -> None:
    for moment in (1, SEGMENT - 1, SEGMENT, 2_345_678):
        died = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path), str(moment)], check=False)
        assert died.returncode == -9
        assert store.releases() == []
    # The last killed push had sent the second segment.
    release, _ = push()
    store.verify(release)
    assert shell.received < SIZE - 2 * SEGMENT
    assert [path.name for path in (shell.folder / "a/.staging").iterdir()] == []


def test_a_lost_tail_is_sent_again(store: ClaimStore, shell: FaultyShell, push: Push) -> None:
    shell.loses = [300_000]
    release, _ = push()
    store.verify(release)
    assert SIZE < shell.received < SIZE + SEGMENT


def test_a_connection_that_always_loses_bytes_is_an_error(
    store: ClaimStore, shell: FaultyShell, push: Push
) -> None:
    shell.loses = [1] * 999
    with pytest.raises(IntegrityError, match="differ from the ones that were sent"):
        push()
    assert store.releases() == []


@pytest.mark.parametrize("damage", ["corrupt", "hole", "longer"])
def test_only_damaged_segments_are_sent_again(
    store: ClaimStore, shell: FaultyShell, push: Push, damage: str
) -> None:
    shell.breaks = [4 * SEGMENT + 10, *[0] * 99]
    with pytest.raises(BrokenError):
        push()
    with (staged(shell) / ARCHIVE).open("r+b") as file:
        if damage == "longer":
            file.truncate(SIZE * 2)
        else:
            file.seek(SEGMENT + 5)
            file.write(bytes(100) if damage == "hole" else b"x" * 100)
    shell.breaks, shell.received = [], 0
    release, _ = push()
    store.verify(release)
    left = SIZE if damage == "longer" else SIZE - 3 * SEGMENT
    assert left < shell.received < left + SEGMENT


def test_pushing_a_stored_release_runs_one_script(store: ClaimStore, shell: FaultyShell, push: Push) -> None:
    release, _ = push()
    shell.runs = shell.received = 0
    assert store.find("digits", release.id) == release
    assert shell.runs == 1
    assert push()[1].bytes_written == 0
    assert (shell.runs, shell.received) == (2, 0)


class TruncatingShell(FaultyShell):
    """A shell whose output is truncated, with an error or silently."""

    def __init__(self, folder: Path, *, silent: bool) -> None:
        super().__init__(folder)
        self.silent, self.limits = silent, [10**9]

    def run(self, script: str, *arguments: str, source: Iterable[bytes] = ()) -> Iterator[bytes]:
        left = self.limits.pop(0) if self.limits else 10**9
        for data in super().run(script, *arguments, source=source):
            yield data[:left]
            left -= len(data)
            if left <= 0:
                if not self.silent:
                    raise BrokenError("the connection broke")
                return


@pytest.mark.parametrize("silent", [False, True])
def test_a_download_resumes_and_truncated_output_is_not_used(tmp_path: Path, silent: bool) -> None:
    shell = TruncatingShell(tmp_path / "claim", silent=silent)
    store = ClaimStore(Store(uri="pvc://models/a"), shell, tmp_path, patience=patience())
    release, _ = put(store, tmp_path)
    shell.limits = [5, 10**9, 3, 10**9, 1000, 3_000_000, 70_000, 1, 1, 1]
    store.verify(release)
    shell.limits = [10] * 3
    assert store.releases() == [release]
    shell.limits = [1] * 99
    with pytest.raises(BrokenError):
        store.releases()


@pytest.mark.parametrize("prefix", ["-rf/a=b+c", "--", ""])
def test_a_prefix_is_never_read_as_an_option(shell: FaultyShell, tmp_path: Path, prefix: str) -> None:
    store = ClaimStore(Store(uri=f"pvc://models/{prefix}"), shell, tmp_path)
    release, stored = put(store, tmp_path)
    assert stored.uri == "/".join(word for word in ("pvc://models", prefix, release.label) if word) + "/"
    assert store.releases("digits") == [release]
    store.verify(release)
    assert store.delete(release) == stored.bytes_written
    assert store.releases() == []


def test_other_files_in_the_volume_are_not_releases(
    store: ClaimStore, shell: FaultyShell, push: Push
) -> None:
    release, _ = push()
    for name in ("a b/1.0-0123456789ab", "x\ny/1.0-0123456789ab", "digits/not an id", "UP/1.0-0123456789ab"):
        (shell.folder / "a" / name).mkdir(parents=True)
        (shell.folder / "a" / name / "release.json").write_text("{}")
    assert store.releases() == [release]


def test_uploads_older_than_a_week_are_removed(shell: FaultyShell, push: Push) -> None:
    old, young = (shell.folder / "a/.staging" / name for name in ("digits.old", "digits.young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
    week = time.time() - 9 * 86400
    os.utime(old, (week, week))
    push()
    assert (old.exists(), young.exists()) == (False, True)


def test_a_full_volume_is_an_error(shell: FaultyShell, push: Push, tmp_path: Path) -> None:
    shell.folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(shell.folder)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("a small tmpfs can be mounted by root only")
    try:
        with pytest.raises(DiskFullError, match="the volume is full") as caught:
            push()
        assert caught.value.where.startswith("pvc://models/a/digits/")
    finally:
        subprocess.run(["umount", str(shell.folder)], check=True)


def test_an_image_without_the_programs_is_an_error(
    store: ClaimStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FaultyShell.run
    monkeypatch.setattr(
        FaultyShell, "run", lambda self, text, *words, **_: run(self, f"PATH=/\n{text}", *words)
    )
    with pytest.raises(StoreError, match="lacks a program") as caught:
        store.releases()
    assert "store.helper-image" in (caught.value.hint or "")
