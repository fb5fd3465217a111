"""What every model store keeps to. One suite over all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployer.archive import Archive, DigestCache, Member, write_archive
from deployer.config import Config, Model
from deployer.errors import ConfigError, IntegrityError, KdeployError, StoreError
from deployer.release import Release, plan_release
from deployer.store import ModelStore, Stored, open_store
from deployer.store.folder import FolderStore

Push = Callable[..., tuple[Release, Stored]]


@pytest.fixture(params=["folder", "folder with a blank and an ü", "file URL"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ModelStore:
    if request.param == "file URL":
        return open_store(f"file://{tmp_path}/store", tmp_path / "elsewhere")
    return open_store("model store ü" if "blank" in request.param else "store", tmp_path)


@pytest.fixture
def push(store: ModelStore, tmp_path: Path) -> Push:
    def push(
        name: str = "digits", version: str = "1.0", content: bytes = b"weights"
    ) -> tuple[Release, Stored]:
        with store.stage() as staging:
            archive = Archive(
                name=name,
                version=version,
                format="zip-store",
                members=(Member(name="w.pt", size=len(content), sha256=None, source=content),),
            )
            digests = DigestCache(tmp_path / "digests.json")
            written = write_archive(archive, staging.archive_path(f"{name}.mar"), digests)
            release = plan_release(Config(model=Model(name=name, version=version, handler="h")), written)
            return release, store.put(release, staging)

    return push


def place(store: ModelStore, release: Release) -> Path:
    assert isinstance(store, FolderStore)
    return store.folder / release.name / release.id


def test_what_was_put_is_found_listed_and_verified(store: ModelStore, push: Push) -> None:
    release, stored = push()
    assert stored.uri == store.uri(release)
    assert stored.uri.startswith("file:///")
    assert stored.uri.endswith(f"/digits/{release.id}/")
    assert stored.bytes_written > 0
    assert store.find("digits", release.id) == release
    assert store.list() == store.list("digits") == [release]
    store.verify(release)


def test_the_layout_is_what_torchserve_and_kserve_expect(store: ModelStore, push: Push) -> None:
    release, _ = push()
    folder = place(store, release)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"config/config.properties", "model-store/digits.mar", "release.json"}
    assert (folder / "config" / "config.properties").read_text() == release.config_properties
    # KServe's downloader loses empty files, or takes one for the whole release.
    assert all((folder / name).stat().st_size for name in files)


def test_the_same_release_again_writes_nothing(store: ModelStore, push: Push) -> None:
    release, _ = push()
    before = sorted((p, p.stat().st_mtime_ns) for p in place(store, release).rglob("*"))
    assert push() == (release, Stored(store.uri(release), 0))
    assert sorted((p, p.stat().st_mtime_ns) for p in place(store, release).rglob("*")) == before


def test_releases_are_listed_oldest_first(store: ModelStore, push: Push) -> None:
    made = []
    for number in range(3):
        release, _ = push(content=b"%d" % number)
        made.append(release)
        os.utime(place(store, release) / "release.json", (number, number))
    other, _ = push(name="other")
    assert store.list("digits") == made
    assert store.list() == [*made, other]


def test_what_is_not_there(store: ModelStore) -> None:
    assert store.find("digits", "1.0-0123456789ab") is None
    assert store.list() == []


def test_deleted_is_gone(store: ModelStore, push: Push) -> None:
    release, stored = push()
    assert store.delete(release) == stored.bytes_written
    assert store.find("digits", release.id) is None
    with pytest.raises(StoreError, match="cannot be removed"):
        store.delete(release)


def test_what_was_staged_and_not_put_leaves_nothing(store: ModelStore) -> None:
    assert isinstance(store, FolderStore)
    with pytest.raises(RuntimeError), store.stage() as staging:
        staging.archive_path("a.mar").write_bytes(b"x")
        raise RuntimeError
    assert [p.name for p in (store.folder / ".staging").iterdir()] == ["sweep"]


@pytest.mark.parametrize(
    ("touch", "what"),
    [
        (lambda folder: (folder / "model-store" / "digits.mar").unlink(), "is missing"),
        (lambda folder: (folder / "config" / "more").write_text("x"), "does not belong"),
        (lambda folder: (folder / "config" / "config.properties").write_text("x=1\n"), "was changed"),
        (lambda folder: flip(folder / "model-store" / "digits.mar"), "."),
        (lambda folder: os.truncate(folder / "model-store" / "digits.mar", 20), "."),
    ],
)
def test_a_touched_release_is_found_out(
    store: ModelStore, push: Push, touch: Callable[[Path], None], what: str
) -> None:
    release, _ = push()
    touch(place(store, release))
    with pytest.raises(IntegrityError, match=what):
        store.verify(release)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"weights")] ^= 1
    path.write_bytes(data)


def test_a_renamed_release_is_found_out(store: ModelStore, push: Push) -> None:
    release, _ = push()
    folder = place(store, release)
    other = folder.with_name("1.0-0123456789ab")
    folder.rename(other)
    with pytest.raises(IntegrityError, match="it tells of"):
        store.find("digits", other.name)


def test_a_record_that_is_none(store: ModelStore, push: Push) -> None:
    release, _ = push()
    (place(store, release) / "release.json").write_text("{}")
    with pytest.raises(IntegrityError):
        store.list()


def test_debris_in_its_place_gives_way(store: ModelStore, push: Push) -> None:
    release, _ = push()
    (place(store, release) / "release.json").unlink()
    assert store.find("digits", release.id) is None
    assert push()[1].bytes_written > 0
    store.verify(release)


def test_two_pushes_of_one_release_at_once(store: ModelStore, push: Push) -> None:
    results: list[tuple[Release, Stored]] = []
    threads = [
        threading.Thread(target=lambda: results.append(push(content=b"x" * 300_000))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert sum(stored.bytes_written > 0 for _, stored in results) == 1
    store.verify(results[0][0])
    assert len(store.list()) == 1


def test_pushes_that_begin_and_end_at_once_do_not_meet(store: ModelStore) -> None:
    def stage() -> int:
        for _ in range(50):
            with store.stage() as staging:
                staging.archive_path("a.mar").write_bytes(b"x")
        return 50

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(lambda _: stage(), range(8))) == 400


def test_an_unreadable_store_says_so(store: ModelStore) -> None:
    assert isinstance(store, FolderStore)
    store.folder.parent.mkdir(parents=True, exist_ok=True)
    store.folder.write_text("a file")
    with pytest.raises(StoreError, match="cannot be written") as caught, store.stage():
        pass
    assert str(store.folder) in (caught.value.where or "")


@pytest.mark.parametrize("uri", ["s3://bucket/models", "gs://bucket", "ftp://x"])
def test_a_store_of_another_kind_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not supported"):
        open_store(uri, tmp_path)


PUSH = """
import sys
from pathlib import Path
from deployer.archive import Archive, DigestCache, Member, write_archive
from deployer.config import Config, Model
from deployer.release import plan_release
from deployer.store import open_store
store = open_store("store", Path(sys.argv[1]))
member = Member(name="w.pt", size=20_000_000, sha256=None, source=bytes(20_000_000))
archive = Archive(name="digits", version="1.0", format="zip-store", members=(member,))
print("go", flush=True)
with store.stage() as staging:
    digests = DigestCache(Path(sys.argv[1], "d.json"))
    written = write_archive(archive, staging.archive_path("digits.mar"), digests)
    store.put(plan_release(Config(model=Model(name="digits", version="1.0", handler="h")), written), staging)
print("done", flush=True)
"""


@pytest.fixture
def pushing(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    children: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-c", PUSH, str(tmp_path)], stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"go\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def test_killed_at_any_moment_it_is_there_whole_or_not_at_all(
    tmp_path: Path, pushing: Callable[[], subprocess.Popen[bytes]]
) -> None:
    store = open_store("store", tmp_path)
    assert isinstance(store, FolderStore)
    for delay in (0.0, 0.005, 0.01, 0.02, 0.04, 0.08):
        child = pushing()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        for release in store.list():
            store.verify(release)
    assert pushing().wait() == 0
    (release,) = store.list()
    store.verify(release)
    # What the killed ones left was swept by the last.
    assert [p.name for p in (store.folder / ".staging").iterdir()] == ["sweep"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("a small tmpfs can be mounted by root only")
    try:
        archive = Archive(
            name="digits",
            version="1.0",
            format="zip-store",
            members=(Member(name="w.pt", size=2_000_000, sha256=None, source=bytes(2_000_000)),),
        )
        with pytest.raises(KdeployError) as caught, open_store("store", small).stage() as staging:
            write_archive(archive, staging.archive_path("digits.mar"), DigestCache(tmp_path / "digests.json"))
        assert caught.value.exit_code == 13
        assert [p.name for p in (small / "store" / ".staging").iterdir()] == ["sweep"]
    finally:
        subprocess.run(["umount", str(small)], check=True)
