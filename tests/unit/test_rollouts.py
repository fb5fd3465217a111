"""The rollouts of a project, from a real model store to a target in memory: the order of their steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from deployer.bundle import Bundle, Sealed
from deployer.errors import (
    ConfigError,
    ConflictError,
    NotFoundError,
    RolloutFailedError,
    RolloutTimeoutError,
    TargetError,
)
from deployer.events import Applied, Event, Noted, Pushed, StatusChanged, Unchanged, Warned
from deployer.findings import Finding, failure, warning
from deployer.journal import Entry, Outcome
from deployer.observed import Capabilities, Document, Live, Reference
from deployer.release import Release
from deployer.rollout.plan import Strategy
from deployer.rollouts import Rollouts
from deployer.storage_access import StorageAccess
from deployer.store.folder import FolderStore
from deployer.targets.memory import MemoryTarget
from tests.bundles import DEMO, make_entry
from tests.clocks import FakeClock
from tests.unit.projects import Folder

ACCESS = StorageAccess(data={"AWS_SECRET_ACCESS_KEY": "hunter2"}, caution="the token expires in an hour")
SECRETS = ("hunter2", "aHVudGVyMg")


class RecordedStore(FolderStore):
    """A model store in a folder that says what it was asked to do."""

    def __init__(self, folder: Path, said: list[str]) -> None:
        super().__init__(folder)
        self.said = said
        self.given: StorageAccess | None = None

    def access(self) -> StorageAccess | None:
        return self.given

    def check(self, release: Release) -> None:
        self.said.append("check")
        super().check(release)

    def close(self) -> None:
        self.said.append("close")


class RecordedTarget(MemoryTarget):
    """A target in memory that says what it was asked to do, with findings that a test gives."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(clock=FakeClock(), lag=1)
        self.said = said
        self.found: list[Finding] = []
        self.refusal: TargetError | None = None
        self.local = False
        self.secrets: list[Sealed | None] = []

    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(super().capabilities(), local_storage_only=self.local)

    def get(self, reference: Reference) -> Live | None:
        self.said.append("get")
        return super().get(reference)

    def check(self, bundle: Bundle, *, wait: bool = True) -> list[Finding]:
        self.said.append("findings" if wait else "findings without waiting")
        return self.found

    def preview(self, bundle: Bundle) -> list[tuple[Document | None, Document]]:
        if self.refusal:
            raise self.refusal
        return super().preview(bundle)

    def apply(self, bundle: Bundle, entry: Entry, *, expect: int | None = None) -> int:
        self.said.append("apply")
        self.secrets.append(bundle.secret)
        return super().apply(bundle, entry, expect=expect)


class World:
    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self.folder = Folder(folder)
        self.memory = RecordedTarget(self.said)
        self.store = RecordedStore(folder / "model-store", self.said)

    @property
    def events(self) -> list[Event]:
        return self.folder.events

    def open(self, **flags: str) -> Rollouts:
        """Open the project anew, as each command does."""
        project = self.folder.project(**flags)
        self.said.clear()
        return Rollouts(project, self.store, self.memory.target, self.events.append)

    def rollout(self, release_id: str | None = None, **more: object) -> Release:
        return self.open().rollout(release_id, **{"timeout": 30.0, **more})  # type: ignore[arg-type]

    def two(self) -> tuple[Release, Release]:
        """Roll out two releases, one after the other."""
        first = self.rollout()
        self.folder.change(b"v")
        return first, self.rollout()

    def outcomes(self) -> list[tuple[str, Outcome]]:
        return [(entry.release, entry.outcome) for entry in self.memory.entries(DEMO)]

    def shares(self) -> dict[str, int]:
        return dict(self.memory.served[DEMO].traffic)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class TestRollout:
    def test_a_release_is_pushed_applied_and_becomes_ready(self, world: World) -> None:
        release = world.rollout()
        assert world.store.find("demo", release.id) == release
        assert world.outcomes() == [(release.id, Outcome.READY)]
        kinds = [kind for kind in world.folder.kinds() if kind in (Pushed, Applied, StatusChanged)]
        assert kinds[:2] == [Pushed, Applied]
        assert world.said == ["get", "findings", "close", "apply"]
        (entry,) = world.memory.entries(DEMO)
        assert (entry.archive, entry.strategy) == (release.archive.digest, "rolling")
        assert entry.who

    def test_what_is_live_already_is_not_applied_again(self, world: World) -> None:
        release = world.rollout()
        assert world.rollout() == release
        assert world.said == ["get"]
        assert world.folder.kinds() == [Pushed, Unchanged]
        assert world.outcomes() == [(release.id, Outcome.READY)]

    def test_a_release_that_became_ready_late_is_corrected(self, world: World) -> None:
        world.memory.lag = 100
        with pytest.raises(RolloutTimeoutError):
            world.rollout()
        assert world.outcomes()[0][1] is Outcome.TIMED_OUT
        world.memory.lag = 0
        world.rollout()
        assert [outcome for _, outcome in world.outcomes()] == [Outcome.READY]

    def test_an_older_release_is_checked_and_nothing_is_pushed(self, world: World) -> None:
        first, _ = world.two()
        assert world.rollout(first.id) == first
        assert world.said == ["get", "findings", "check", "close", "apply"]
        assert Pushed not in world.folder.kinds()
        assert world.shares() == {first.id: 100}

    def test_a_release_that_is_not_stored_ends_it_before_anything_is_asked(self, world: World) -> None:
        with pytest.raises(NotFoundError):
            world.rollout("1.0-0123456789ab")
        assert world.said == []

    def test_a_canary_and_its_promotion(self, world: World) -> None:
        first = world.rollout(percent=10)
        assert any("first release" in event.message for event in world.events if isinstance(event, Noted))
        assert world.shares() == {first.id: 100}
        world.folder.change(b"v")
        second = world.rollout(percent=10)
        assert world.shares() == {second.id: 10, first.id: 90}
        assert world.memory.entries(DEMO)[-1].stable == first.id
        world.rollout()
        assert world.shares() == {second.id: 100}
        world.rollout(percent=10)  # again, as a CI job does it: nothing is taken from it
        assert Unchanged in world.folder.kinds()
        assert world.shares() == {second.id: 100}

    def test_a_canary_is_refused_where_somebody_rolled_out_in_between(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.rollout()
        bundle = world.memory.served[DEMO].bundle
        world.folder.change(b"v")

        def check(*_: object, **__: object) -> list[Finding]:
            world.memory.apply(bundle, make_entry(bundle))
            return []

        monkeypatch.setattr(world.memory, "check", check)
        with pytest.raises(ConflictError, match=r"alice@laptop rolled out release .* in the meantime"):
            world.rollout(percent=10)
        assert world.memory.served[DEMO].bundle == bundle
        world.folder.change(b"w")
        world.rollout()  # all requests are for it, whatever was live

    def test_a_canary_of_somebody_who_may_not_read_the_journal(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.rollout()
        world.folder.change(b"v")

        def entries(*_: object) -> list[Entry]:
            raise TargetError("no")

        monkeypatch.setattr(world.memory, "entries", entries)
        assert world.rollout(percent=10).id == world.memory.served[DEMO].bundle.release

    def test_scaling_is_applied_without_a_new_release(self, world: World) -> None:
        release = world.rollout()
        assert world.open(scaling__max_replicas="3").rollout(timeout=30.0) == release
        assert world.memory.served[DEMO].bundle.service["spec"]["predictor"]["maxReplicas"] == 3
        assert "apply" in world.said

    def test_a_failure_is_rolled_back(self, world: World) -> None:
        first = world.rollout()
        world.folder.change(b"v")
        broken = world.open().decide().release
        world.memory.broken[broken.id] = "no module named torch"
        with pytest.raises(RolloutFailedError):
            world.rollout(rollback=True)
        assert world.outcomes() == [
            (first.id, Outcome.READY),
            (broken.id, Outcome.FAILED),
            (first.id, Outcome.READY),
        ]

    def test_a_release_that_is_live_and_ready_can_be_gone_back_to(self, world: World) -> None:
        first = world.open().rollout(timeout=None)  # nobody waited for it
        world.folder.change(b"v")
        broken = world.open().decide().release
        world.memory.get(DEMO)
        world.memory.broken[broken.id] = "no module named torch"
        with pytest.raises(RolloutFailedError, match="no module named torch") as caught:
            world.rollout(rollback=True)
        assert f"{first.id} is restored and Ready" in (caught.value.hint or "")

    def test_nobody_waits_without_a_timeout(self, world: World) -> None:
        release = world.rollout(timeout=None)
        assert world.outcomes() == [(release.id, Outcome.APPLIED)]
        assert "findings without waiting" in world.said


class TestWhatStandsInTheWay:
    def test_a_failed_check_ends_it_before_the_first_write(self, world: World) -> None:
        world.memory.found = [failure("quota", "no room", "namespace default", "ask for more")]
        with pytest.raises(ConfigError, match="no room"):
            world.rollout()
        assert world.said == ["get", "findings"]
        assert world.store.releases() == []

    def test_warnings_are_told(self, world: World) -> None:
        world.memory.found = [warning("quota", "little room", "namespace default", "ask for more")]
        world.rollout()
        assert Warned("little room: ask for more") in world.events

    def test_a_strategy_that_the_target_lacks_is_refused(self, world: World) -> None:
        with pytest.raises(ConfigError, match="Standard mode"):
            world.rollout(strategy=Strategy.RECREATE)

    def test_a_target_that_reads_this_disk_needs_a_store_on_it(self, world: World) -> None:
        world.memory.local = True
        world.rollout()
        world.folder.change(b"v")
        with pytest.raises(ConfigError, match="not from s3://") as caught:
            world.open(store__uri="s3://models/demo").rollout()
        assert caught.value.where == "store.uri"


class TestDecision:
    def test_it_changes_nothing_and_says_what_would_be(self, world: World) -> None:
        world.rollout()
        world.folder.change(b"v")
        served, stored = world.memory.served[DEMO], world.store.releases()
        before = (served.bundle, list(served.entries))
        decision = world.open().decide(percent=10, check=True, preview=True)
        assert (decision.traffic.percent, decision.unchanged) == (10, False)
        assert [change.kind for change in decision.changes] == ["InferenceService"]
        assert "spec.predictor.canaryTrafficPercent" in [one.path for one in decision.changes[0].changes]
        assert (served.bundle, served.entries) == before
        assert world.store.releases() == stored
        assert "apply" not in world.said

    def test_what_is_live_is_unchanged_and_not_checked(self, world: World) -> None:
        world.rollout()
        world.memory.found = [failure("quota", "no room", "", "")]
        rollouts = world.open()
        decision = rollouts.decide(check=True, preview=True)
        assert decision.unchanged
        assert (decision.changes, decision.findings) == ((), ())
        rollouts.tell(decision)

    def test_whoever_renders_a_role_needs_no_credentials(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundles: list[Bundle] = []

        def role(bundle: Bundle) -> list[Document]:
            bundles.append(bundle)
            return []

        def access() -> StorageAccess:
            raise ConfigError("the credentials are temporary or personal")

        monkeypatch.setattr(world.memory, "role", role)
        assert world.open().role() == []
        monkeypatch.setattr(world.store, "access", access)
        assert world.open().role() == []
        assert [bundle.secret is not None for bundle in bundles] == [False, True]

    def test_for_gitops_nobody_looks(self, world: World) -> None:
        decision = world.open().decide(percent=10, look=False)
        assert (decision.bundle.percent, decision.live) == (10, None)
        assert world.said == []

    def test_the_target_may_be_asked_to_admit_it(self, world: World) -> None:
        rollouts = world.open()
        assert rollouts.admit(rollouts.decide()).status == "ok"
        world.memory.refusal = TargetError("the webhook denied it", where="spec.predictor", hint="raise it")
        found = rollouts.admit(rollouts.decide())
        assert (found.status, found.detail) == ("failure", "the webhook denied it")
        assert (found.where, found.remedy) == ("spec.predictor", "raise it")

    def test_it_is_known_whether_a_release_is_stored(self, world: World) -> None:
        rollouts = world.open()
        release = rollouts.decide().release
        assert rollouts.is_stored(release) is False
        world.rollout()
        assert rollouts.is_stored(release) is True
        world.store.lookup_is_side_effect_free = False
        assert rollouts.is_stored(release) is None


class TestSecrets:
    def test_they_reach_the_target_and_nothing_else(self, world: World) -> None:
        world.store.given = ACCESS
        world.rollout()
        (secret,) = world.memory.secrets
        assert secret
        assert secret.document["data"] == {"AWS_SECRET_ACCESS_KEY": "aHVudGVyMg=="}
        decision = world.open().decide(preview=True)
        texts: Sequence[object] = (
            world.events,
            world.memory.entries(DEMO),
            decision,
            decision.bundle.documents,
            msgspec.json.encode(world.memory.entries(DEMO)),
            msgspec.json.encode(decision.changes),
        )
        for text in map(str, texts):
            assert not any(secret in text for secret in SECRETS)

    def test_a_caution_is_told_where_something_is_applied(self, world: World) -> None:
        world.store.given = ACCESS
        world.rollout()
        assert Warned("the token expires in an hour") in world.events
        world.rollout()
        assert Unchanged in world.folder.kinds()
        assert Warned("the token expires in an hour") not in world.events

    def test_a_rollback_gets_the_secret_of_today(self, world: World) -> None:
        world.store.given = ACCESS
        world.rollout()
        world.folder.change(b"v")
        world.memory.broken[world.open().decide().release.id] = "no module named torch"
        world.store.given = StorageAccess(data={"AWS_SECRET_ACCESS_KEY": "rotated"})
        with pytest.raises(RolloutFailedError):
            world.rollout(rollback=True)
        secrets = [one.document["data"]["AWS_SECRET_ACCESS_KEY"] for one in world.memory.secrets if one]
        assert secrets == ["aHVudGVyMg==", "cm90YXRlZA==", "cm90YXRlZA=="]

    def test_a_rollback_where_the_store_gives_none_any_more(self, world: World) -> None:
        world.store.given = ACCESS
        world.rollout()
        world.folder.change(b"v")
        world.store.given = None
        world.memory.broken[world.open().decide().release.id] = "no module named torch"
        with pytest.raises(RolloutFailedError):
            world.rollout(rollback=True)
        assert world.memory.secrets[1:] == [None, None]
