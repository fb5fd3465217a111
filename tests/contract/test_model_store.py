"""The behavior of every model store. The same tests run on all of them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from deployer.archive import Archive, DigestCache, Member, write_archive
from deployer.config import Config, Model, Store
from deployer.errors import IntegrityError, KdeployError, StoreError
from deployer.release import Release, plan_release
from deployer.store import ModelStore, Stored
from deployer.store.copy import copy_release
from deployer.store.folder import FolderStore
from deployer.store.open import open_store
from tests.contract.sides import Side, side_of
from tests.shell import FolderShell

Push = Callable[..., tuple[Release, Stored]]


STORES = ["folder", "folder with a space and an ü", "file URL", "s3", "azure", "claim"]


@pytest.fixture(params=STORES)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param in ("s3", "azure"):
        return request.getfixturevalue(f"{request.param}_config")
    uris = {"folder": "store", "file URL": f"file://{tmp_path}/store", "claim": "pvc://models/a/b"}
    return Store(uri=uris.get(request.param, "model store ü"))


@pytest.fixture
def store(config: Store, tmp_path: Path) -> ModelStore:
    return open_store(config, tmp_path, FolderShell(tmp_path / "claim"))


@pytest.fixture
def side(store: ModelStore) -> Side:
    return side_of(store)


@pytest.fixture
def push(store: ModelStore, tmp_path: Path) -> Push:
    def push(
        name: str = "digits",
        version: str = "1.0",
        content: bytes = b"weights",
        archive_format: str = "zip-store",
    ) -> tuple[Release, Stored]:
        with store.stage() as staging:
            archive = Archive(
                name=name,
                version=version,
                format=archive_format,
                members=(Member(name="w.pt", size=len(content), sha256=None, source=content),),
            )
            digests = DigestCache(tmp_path / "digests.json")
            written = write_archive(archive, staging.archive_path(f"{name}.mar"), digests)
            release = plan_release(Config(model=Model(name=name, version=version, handler="h")), written)
            return release, store.put(release, staging)

    return push


def test_a_stored_release_is_found_listed_and_verified(store: ModelStore, side: Side, push: Push) -> None:
    release, stored = push()
    assert stored.uri == store.uri(release)
    assert stored.uri.startswith(f"{side.scheme}://")
    assert stored.uri.endswith(f"/digits/{release.id}/")
    assert stored.bytes_written > 0
    assert store.find("digits", release.id) == release
    assert store.releases() == store.releases("digits") == [release]
    store.verify(release)


def test_the_layout_is_the_one_that_torchserve_and_kserve_expect(side: Side, push: Push) -> None:
    release, _ = push()
    assert side.names(release) == {"config/config.properties", "model-store/digits.mar", "release.json"}
    assert side.read(release, "config/config.properties").decode() == release.config_properties
    # KServe's downloader skips empty files, or stops after one.
    assert all(side.read(release, name) for name in side.names(release))


def test_storing_a_release_again_writes_nothing(store: ModelStore, side: Side, push: Push) -> None:
    release, _ = push()
    before = side.versions(release)
    assert push() == (release, Stored(store.uri(release), 0))
    assert side.versions(release) == before


def test_releases_are_listed_oldest_first(store: ModelStore, side: Side, push: Push) -> None:
    made = []
    for number in (2, 1):
        release, _ = push(content=b"%d" % number)
        made.append(release)
        side.make_old(release)
    other, _ = push(name="other")
    assert store.releases("digits") == made
    assert store.releases() == [*made, other]


def test_an_unknown_release_is_not_found(store: ModelStore) -> None:
    assert store.find("digits", "1.0-0123456789ab") is None
    assert store.releases() == []


def test_a_deleted_release_is_not_found(store: ModelStore, push: Push) -> None:
    release, stored = push()
    assert store.delete(release) == stored.bytes_written
    assert store.find("digits", release.id) is None
    with pytest.raises(StoreError, match="cannot remove"):
        store.delete(release)


def test_a_staged_release_that_was_not_put_is_removed(store: ModelStore, side: Side) -> None:
    with pytest.raises(RuntimeError), store.stage() as staging:
        staging.archive_path("a.mar").write_bytes(b"x")
        raise RuntimeError
    assert [p.name for p in side.staging.iterdir()] == ["sweep"]


ARCHIVE = "model-store/digits.mar"


TOUCHES = [
    (lambda side, release: side.remove(release, ARCHIVE), "is missing"),
    (lambda side, release: side.remove(release, "config/config.properties"), "is missing"),
    (lambda side, release: side.write(release, "config/more", b"x"), "does not belong"),
    (lambda side, release: side.write(release, "config/config.properties", b"x=1\n"), "was changed"),
    (lambda side, release: side.write(release, ARCHIVE, flipped(side.read(release, ARCHIVE))), "."),
    (lambda side, release: side.write(release, ARCHIVE, side.read(release, ARCHIVE)[:20]), "."),
    (lambda side, release: side.write(release, ARCHIVE, side.read(release, ARCHIVE)[:-1]), "."),
    (lambda side, release: side.write(release, ARCHIVE, side.read(release, ARCHIVE)[1:]), "."),
    (lambda side, release: side.write(release, ARCHIVE, side.read(release, ARCHIVE) + b"x"), "."),
    (lambda side, release: side.write(release, ARCHIVE, b""), "."),
]


@pytest.mark.parametrize(("touch", "what"), TOUCHES)
def test_a_changed_release_is_an_error(
    store: ModelStore, side: Side, push: Push, touch: Callable[[Side, Release], None], what: str
) -> None:
    release, _ = push()
    touch(side, release)
    for compare in (store.verify, store.check):
        with pytest.raises(IntegrityError, match=what) as caught:
            compare(release)
        assert caught.value.where
        assert caught.value.hint


@pytest.mark.parametrize("archive_format", ["zip-store", "default"])
def test_an_unchanged_release_is_checked_without_reading_its_archive(
    store: ModelStore, push: Push, archive_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, _ = push(content=b"weights " * 100_000, archive_format=archive_format)
    read = []
    monkeypatch.setattr("deployer.archive.read.pump", lambda *_: read.append(1))
    store.check(release)
    assert read == []
    with pytest.raises(IntegrityError):  # proves that the patch works
        store.verify(release)
    assert read == [1]


def test_the_archive_of_another_release_is_an_error(store: ModelStore, side: Side, push: Push) -> None:
    release, _ = push(content=b"weights")
    other, _ = push(content=b"weightt")
    side.write(release, ARCHIVE, side.read(other, ARCHIVE))
    with pytest.raises(IntegrityError):
        store.check(release)


def test_comparing_a_deleted_release_is_an_error(store: ModelStore, push: Push) -> None:
    release, _ = push()
    store.delete(release)
    for compare in (store.verify, store.check):
        with pytest.raises((StoreError, IntegrityError)):
            compare(release)
    assert store.dated() == []


@pytest.mark.parametrize("config", ["folder"], indirect=True)
def test_a_release_that_is_deleted_while_a_folder_is_listed_is_skipped(store: ModelStore, push: Push) -> None:
    class Racing(FolderStore):
        def find(self, name: str, release_id: str) -> Release | None:
            found = super().find(name, release_id)
            if found:
                self.delete(found)
            return found

    assert isinstance(store, FolderStore)
    push()
    assert Racing(store.folder).releases() == []


def test_a_release_has_the_time_of_its_push(store: ModelStore, push: Push) -> None:
    before = int(time.time())
    release, _ = push()
    ((pushed, found),) = store.dated("digits")
    assert found == release
    assert before - 1 <= pushed <= time.time() + 1


def flipped(content: bytes) -> bytes:
    return content.replace(b"weights", b"weightt")


def test_a_release_is_copied_to_another_store_as_it_is(
    store: ModelStore, side: Side, push: Push, tmp_path: Path
) -> None:
    release, _ = push()
    other = open_store(Store(uri="other"), tmp_path)
    assert copy_release(release, store, other).bytes_written > 0
    other.verify(release)
    assert other.find("digits", release.id) == release
    assert copy_release(release, store, other) == Stored(other.uri(release), 0)
    store.delete(release)
    assert copy_release(release, other, store).bytes_written > 0  # and back
    store.verify(release)
    other.delete(release)
    side.write(release, ARCHIVE, flipped(side.read(release, ARCHIVE)))
    with pytest.raises(IntegrityError, match=r"digits\.mar"):
        copy_release(release, store, other)
    assert other.releases() == []


def test_a_renamed_release_is_an_error(store: ModelStore, side: Side, push: Push) -> None:
    release, _ = push()
    side.rename(release, "1.0-0123456789ab")
    with pytest.raises(IntegrityError, match=r"release\.json belongs to"):
        store.find("digits", "1.0-0123456789ab")


def test_an_invalid_record_is_an_error(store: ModelStore, side: Side, push: Push) -> None:
    release, _ = push()
    side.write(release, "release.json", b"{}")
    with pytest.raises(IntegrityError):
        store.releases()


def test_an_incomplete_release_is_replaced(store: ModelStore, side: Side, push: Push) -> None:
    release, _ = push()
    side.remove(release, "release.json")
    side.write(release, ARCHIVE, b"half of it")
    assert store.find("digits", release.id) is None
    assert push()[1].bytes_written > 0
    store.verify(release)


def test_concurrent_pushes_store_one_release(store: ModelStore, push: Push) -> None:
    results: list[tuple[Release, Stored]] = []
    threads = [
        threading.Thread(target=lambda: results.append(push(content=b"x" * 300_000))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    # In a bucket, each push sends the objects that are missing; one push makes the release visible.
    wrote = sum(stored.bytes_written > 0 for _, stored in results)
    assert wrote == 1 if isinstance(store, FolderStore) else wrote >= 1
    store.verify(results[0][0])
    assert len(store.releases()) == 1


def test_concurrent_stagings_do_not_conflict(store: ModelStore) -> None:
    def stage() -> int:
        for _ in range(50):
            with store.stage() as staging:
                staging.archive_path("a.mar").write_bytes(b"x")
        return 50

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(lambda _: stage(), range(8))) == 400


def test_a_file_in_the_place_of_a_store_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    store = open_store(Store(uri="store"), tmp_path)
    uses = [store.stage().__enter__, store.releases, lambda: store.find("digits", "1.0-0123456789ab")]
    for use in uses:
        with pytest.raises(StoreError, match="a file is in the place of a folder") as caught:
            use()
        assert str(tmp_path / "store") in (caught.value.where or "")
        assert caught.value.hint == "Set `store.uri` to a folder, or remove the file."


PUSH = """
import sys
from pathlib import Path
import msgspec
from deployer.archive import Archive, DigestCache, Member, write_archive
from deployer.config import Config, Model, Store
from deployer.release import plan_release
from deployer.store.open import open_store
from tests.shell import FolderShell
folder = Path(sys.argv[1])
store = open_store(msgspec.json.decode(sys.argv[2], type=Store), folder, FolderShell(folder / "claim"))
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
def pushing(config: Store, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    children: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        text = msgspec.json.encode(config).decode()
        child = subprocess.Popen([sys.executable, "-c", PUSH, str(tmp_path), text], stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"go\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def test_a_killed_push_leaves_a_whole_release_or_none(
    store: ModelStore, side: Side, pushing: Callable[[], subprocess.Popen[bytes]]
) -> None:
    for delay in (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, *([] if side.scheme == "file" else [0.16, 0.24, 0.32])):
        child = pushing()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        for release in store.releases():
            store.verify(release)
    assert pushing().wait() == 0
    (release,) = store.releases()
    store.verify(release)
    # The last push removed what the killed ones left.
    assert [p.name for p in side.staging.iterdir()] == ["sweep"]


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("only root can mount a tmpfs")
    try:
        archive = Archive(
            name="digits",
            version="1.0",
            format="zip-store",
            members=(Member(name="w.pt", size=2_000_000, sha256=None, source=bytes(2_000_000)),),
        )
        with pytest.raises(KdeployError) as caught, open_store(Store(uri="store"), small).stage() as staging:
            write_archive(archive, staging.archive_path("digits.mar"), DigestCache(tmp_path / "digests.json"))
        assert caught.value.exit_code == 13
        assert [p.name for p in (small / "store" / ".staging").iterdir()] == ["sweep"]
    finally:
        subprocess.run(["umount", str(small)], check=True)
