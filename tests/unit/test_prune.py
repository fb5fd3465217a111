"""Which releases of a real store can be removed."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from deployer import prune
from deployer.archive import Archive, DigestCache, Member, write_archive
from deployer.bundle import Bundle
from deployer.config import Config, Model
from deployer.errors import StoreError, TargetError
from deployer.journal import Entry
from deployer.observed import Document
from deployer.prune import Use, find_old, read_use
from deployer.release import Release, plan_release
from deployer.store.folder import FolderStore
from deployer.targets.local import OneNode
from deployer.targets.local.revisions import Record
from deployer.targets.memory import MemoryTarget
from deployer.targets.protocols import Target

NOW = 1_000_000.0
UNUSED = Use(frozenset(), {})


class Needing(MemoryTarget):
    """A target that needs the given releases, or fails."""

    def __init__(self, *used: str, fault: str = "") -> None:
        super().__init__()
        self.used, self.fault = frozenset(used), fault

    def releases_in_use(self) -> frozenset[str]:
        if self.fault:
            raise TargetError(self.fault)
        return self.used


def needing(*used: str, fault: str = "") -> Target:
    return Needing(*used, fault=fault).target


def one_node(folder: Path) -> Target:
    state = folder / "state"
    return OneNode(state=state, namespace="default", ingress_host="127.0.0.1", ingress_port=0).target


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def made(store: FolderStore, tmp_path: Path) -> list[Release]:
    """Five releases, pushed an hour apart, the last of them now."""
    found = []
    for number in range(5):
        with store.stage() as staging:
            member = Member("w.pt", 1, None, b"%d" % number)
            archive = Archive(name="digits", version="1.0", format="zip-store", members=(member,))
            written = write_archive(archive, staging.archive_path("digits.mar"), DigestCache(tmp_path / "d"))
            model = Model(name="digits", version="1.0", handler="h")
            release = plan_release(Config(model=model), written)
            store.put(release, staging)
        pushed = NOW - 3600 * (4 - number)
        os.utime(tmp_path / "store" / "digits" / release.id / "release.json", (pushed, pushed))
        found.append(release)
    return found


def old(
    store: FolderStore, use: Use = UNUSED, *, keep: int = 1, min_age: float = 0, now: float = NOW
) -> list[Release]:
    return [
        release for _, release in find_old(store.dated("digits"), use, keep=keep, min_age=min_age, now=now)
    ]


def test_the_newest_releases_stay(store: FolderStore, made: list[Release]) -> None:
    assert old(store) == made[:4]
    assert old(store, keep=3) == made[:2]
    assert old(store, keep=9) == []


def test_young_releases_stay(store: FolderStore, made: list[Release]) -> None:
    assert old(store, min_age=3600) == made[:4]
    assert old(store, min_age=3600 + 1) == made[:3]
    assert old(store, min_age=4 * 3600 + 1) == []
    assert old(store, min_age=3600, now=NOW - 10 * 3600) == []  # this clock is behind the store's
    assert old(store, min_age=0, now=NOW - 10 * 3600) == made[:4]


def test_releases_that_a_target_needs_stay(store: FolderStore, made: list[Release]) -> None:
    targets = {"staging": needing(made[0].label), "production": needing(f"another-name/{made[2].id}")}
    assert old(store, read_use(targets)) == [made[1], made[3]]


def test_an_unreachable_target_stops_a_prune(store: FolderStore, made: list[Release]) -> None:
    targets = {"staging": needing(made[0].label), "production": needing(fault="no route to host")}
    use = read_use(targets)
    assert use.releases == {made[0].id}
    with pytest.raises(
        TargetError, match=r"cannot find out which releases target production needs: no route to host"
    ) as caught:
        old(store, use)
    assert caught.value.where == "targets.production"
    assert "--ignore-target production" in (caught.value.hint or "")
    del targets["production"]
    assert old(store, read_use(targets)) == made[1:4]


def test_two_prunes_at_the_same_time(store: FolderStore, made: list[Release]) -> None:
    removing = prune.remove(store, made[:2])
    assert next(removing) == made[0]
    store.delete(made[1])
    assert list(removing) == [made[1]]
    assert store.releases("digits") == made[2:]


def test_a_failed_removal_is_an_error(store: FolderStore, made: list[Release]) -> None:
    class Stuck(FolderStore):
        def delete(self, release: Release) -> int:
            raise StoreError("read-only")

    with pytest.raises(StoreError, match="read-only"):
        list(prune.remove(Stuck(store.folder), made[:1]))


def test_a_local_target_needs_the_releases_in_its_journal(tmp_path: Path) -> None:
    services = tmp_path / "state" / "local" / "services"
    target = one_node(tmp_path)
    assert target.services.releases_in_use() == frozenset()
    services.mkdir(parents=True)

    def service(release: str) -> Document:
        model = {"storageUri": f"file:///m/digits/{release}/"}
        return {
            "metadata": {"name": "digits", "namespace": "default"},
            "spec": {"predictor": {"model": model}},
        }

    entry = Entry(release="1.0-aaaaaaaaaaaa", bundle=Bundle(service=service("1.1-bbbbbbbbbbbb")))
    record = Record(service=service("1.2-cccccccccccc"), runtime={}, created="", history=(entry,))
    (services / "default.digits.json").write_bytes(msgspec.json.encode(record))
    used = {"digits/1.0-aaaaaaaaaaaa", "digits/1.1-bbbbbbbbbbbb", "digits/1.2-cccccccccccc"}
    assert target.services.releases_in_use() == used
    (services / "default.digits.json").write_text("{")
    assert "target" in read_use({"target": target}).unreachable


def test_an_unreadable_local_state_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state" / "local").mkdir(parents=True)
    (tmp_path / "state" / "local" / "services").write_text("a file")
    target = one_node(tmp_path)
    with pytest.raises(TargetError, match="cannot read the supervisor's records"):
        target.services.releases_in_use()
