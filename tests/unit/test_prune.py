"""Which releases are removed from a real store, whatever targets say of them."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from deployer import prune
from deployer.archive import Archive, DigestCache, Member, write_archive
from deployer.config import Config, Model
from deployer.errors import StoreError, TargetError
from deployer.prune import Dated, Use, ask_use, find_old
from deployer.release import Release, plan_release
from deployer.store.folder import FolderStore
from deployer.targets.local import OneNode

NOW = 1_000_000.0
NOBODY = Use(frozenset(), {})


class Saying(OneNode):
    """A target that says which releases it needs, or why it cannot."""

    def __init__(self, *used: str, fault: str = "") -> None:
        super().__init__(state=Path("none"), namespace="default", ingress_host="127.0.0.1", ingress_port=0)
        self.used, self.fault = frozenset(used), fault

    def releases_in_use(self) -> frozenset[str]:
        if self.fault:
            raise TargetError(self.fault)
        return self.used


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
    store: FolderStore, use: Use = NOBODY, *, keep: int = 1, min_age: float = 0, now: float = NOW
) -> list[Release]:
    return [one.release for one in find_old(store.dated("digits"), use, keep=keep, min_age=min_age, now=now)]


def test_the_newest_stay(store: FolderStore, made: list[Release]) -> None:
    assert old(store) == made[:4]
    assert old(store, keep=3) == made[:2]
    assert old(store, keep=9) == []


def test_the_young_stay(store: FolderStore, made: list[Release]) -> None:
    assert old(store, min_age=3600) == made[:4]
    assert old(store, min_age=3600 + 1) == made[:3]
    assert old(store, min_age=4 * 3600 + 1) == []
    assert old(store, min_age=3600, now=NOW - 10 * 3600) == []  # a clock that is behind the store's
    assert old(store, min_age=0, now=NOW - 10 * 3600) == made[:4]


def test_what_any_target_needs_stays(store: FolderStore, made: list[Release]) -> None:
    targets = {"staging": Saying(made[0].label), "production": Saying(f"another-name/{made[2].id}")}
    assert old(store, ask_use(targets)) == [made[1], made[3]]


def test_a_target_that_cannot_be_asked_stops_it(store: FolderStore, made: list[Release]) -> None:
    targets = {"staging": Saying(made[0].label), "production": Saying(fault="no route to host")}
    use = ask_use(targets)
    assert use.releases == {made[0].id}
    with pytest.raises(TargetError, match=r"production cannot be asked .*: no route to host") as caught:
        old(store, use)
    assert caught.value.where == "targets.production"
    assert "--ignore-target production" in (caught.value.hint or "")
    del targets["production"]
    assert old(store, ask_use(targets)) == made[1:4]


def test_another_prune_at_the_same_time(store: FolderStore, made: list[Release]) -> None:
    found = [Dated(release, NOW) for release in made[:2]]
    removing = prune.remove(store, found)
    assert next(removing) == made[0]
    store.delete(made[1])
    assert list(removing) == [made[1]]
    assert store.releases("digits") == made[2:]


def test_what_cannot_be_removed_is_said(store: FolderStore, made: list[Release]) -> None:
    class Stuck(FolderStore):
        def delete(self, release: Release) -> int:
            raise StoreError("read-only")

    with pytest.raises(StoreError, match="read-only"):
        list(prune.remove(Stuck(store.folder), [Dated(made[0], NOW)]))


def test_a_local_target_needs_what_its_history_names(tmp_path: Path) -> None:
    services = tmp_path / "state" / "local" / "services"
    node = OneNode(state=tmp_path / "state", namespace="default", ingress_host="127.0.0.1", ingress_port=0)
    assert node.releases_in_use() == frozenset()
    services.mkdir(parents=True)
    entry = {"release": "1.0-aaaaaaaaaaaa", "storage_uri": "file:///m/digits/1.1-bbbbbbbbbbbb/"}
    uri = "file:///m/digits/1.2-cccccccccccc/"
    service = {
        "metadata": {"name": "digits", "namespace": "default"},
        "spec": {"predictor": {"model": {"storageUri": uri}}},
    }
    record = {"service": service, "runtime": {}, "created": "", "history": [entry]}
    (services / "default.digits.json").write_bytes(msgspec.json.encode(record))
    used = {"digits/1.0-aaaaaaaaaaaa", "digits/1.1-bbbbbbbbbbbb", "digits/1.2-cccccccccccc"}
    assert node.releases_in_use() == used
    (services / "default.digits.json").write_text("{")
    assert "target" in ask_use({"target": node}).unasked


def test_a_local_state_that_cannot_be_listed_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "state" / "local").mkdir(parents=True)
    (tmp_path / "state" / "local" / "services").write_text("a file")
    node = OneNode(state=tmp_path / "state", namespace="default", ingress_host="127.0.0.1", ingress_port=0)
    with pytest.raises(TargetError, match="cannot be listed"):
        node.releases_in_use()
