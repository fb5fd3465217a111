"""The rollouts of a project, from a real model store to a target in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from deployer.bundle import Bundle, Sealed
from deployer.errors import (
    ConfigError,
    ConflictError,
    KdeployError,
    NotFoundError,
    RolloutFailedError,
    RolloutTimeoutError,
    TargetError,
)
from deployer.events import Applied, Event, Noted, Pushed, StatusChanged, Unchanged, Warned
from deployer.findings import Finding, failure, warning
from deployer.journal import Entry, Outcome
from deployer.observed import Capabilities, Document, Live, Reference, Revision
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
    """A model store in a folder that records its calls."""

    def __init__(self, folder: Path, calls: list[str]) -> None:
        super().__init__(folder)
        self.calls = calls
        self.given: StorageAccess | None = None

    def access(self) -> StorageAccess | None:
        return self.given

    def check(self, release: Release) -> None:
        self.calls.append("check")
        super().check(release)

    def close(self) -> None:
        self.calls.append("close")


class RecordedTarget(MemoryTarget):
    """A target in memory that records its calls, with findings from the test."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__(clock=FakeClock(), lag=1)
        self.calls = calls
        self.found: list[Finding] = []
        self.refusal: KdeployError | None = None
        self.features: dict[str, object] = {}
        self.secrets: list[Sealed | None] = []

    def capabilities(self, *, look: bool = True) -> Capabilities:
        return msgspec.structs.replace(super().capabilities(), **self.features)

    def get(self, reference: Reference) -> Live | None:
        self.calls.append("get")
        return super().get(reference)

    def check(self, bundle: Bundle, *, wait: bool = True) -> list[Finding]:
        self.calls.append("findings" if wait else "findings without waiting")
        return self.found

    def preview(self, bundle: Bundle) -> list[tuple[Document | None, Document]]:
        if self.refusal:
            raise self.refusal
        return super().preview(bundle)

    def apply(self, bundle: Bundle, entry: Entry, *, expect: int | None = None) -> int:
        self.calls.append("apply")
        self.secrets.append(bundle.secret)
        return super().apply(bundle, entry, expect=expect)


class World:
    def __init__(self, folder: Path) -> None:
        self.calls: list[str] = []
        self.folder = Folder(folder)
        self.memory = RecordedTarget(self.calls)
        self.store = RecordedStore(folder / "model-store", self.calls)

    @property
    def events(self) -> list[Event]:
        return self.folder.events

    def open(self, *overlays: Document, **flags: str) -> Rollouts:
        """Open the project, as each command does, with the target's overlays."""
        project = self.folder.project(**flags)
        self.calls.clear()
        return Rollouts(project, self.store, self.memory.target, self.events.append, overlays)

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


class TestOverlays:
    POOLS = tuple({"spec": {"predictor": {"nodeSelector": {"pool": pool}}}} for pool in "ab")

    def test_a_changed_overlay_of_the_target_is_rolled_out_with_the_same_release(self, world: World) -> None:
        release = world.open(self.POOLS[0]).rollout(timeout=30.0)
        again = world.open(self.POOLS[0])
        assert again.decide().unchanged
        changed = world.open(self.POOLS[1])
        decision = changed.decide(preview=True)
        assert (decision.release, decision.unchanged) == (release, False)
        [diff] = decision.changes
        assert {one.path for one in diff.changes} == {
            "metadata.labels.kdeploy.dev/overlay",
            "spec.predictor.nodeSelector.pool",
        }
        assert changed.rollout(timeout=30.0) == release
        assert [event for event in world.events if isinstance(event, Pushed)][-1].bytes_written == 0
        assert world.outcomes() == [(release.id, Outcome.READY), (release.id, Outcome.READY)]
        live = world.memory.get(DEMO)
        assert live
        assert live.document["spec"]["predictor"]["nodeSelector"] == {"pool": "b"}
        plain = world.open()
        assert not plain.decide().unchanged
        plain.rollout(timeout=30.0)
        assert world.open().decide().unchanged

    def test_pods_of_the_same_release_that_do_not_answer_stop_first(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        release = world.open(self.POOLS[0]).rollout(timeout=30.0)
        live = world.memory.get(DEMO)
        assert live
        pods = (Revision("r1", release.id, pods=1),)
        stuck = msgspec.structs.replace(live.status, traffic=(), revisions=pods)
        monkeypatch.setattr(world.memory, "get", lambda _: Live(live.document, stuck))
        world.memory.features = {"deployment_mode": "Standard"}
        chosen = [world.open(pool).decide().strategy for pool in self.POOLS]
        assert chosen == [Strategy.ROLLING, Strategy.RECREATE]


class TestRollout:
    def test_a_rollout_pushes_applies_and_waits(self, world: World) -> None:
        release = world.rollout()
        assert world.store.find("demo", release.id) == release
        assert world.outcomes() == [(release.id, Outcome.READY)]
        kinds = [kind for kind in world.folder.kinds() if kind in (Pushed, Applied, StatusChanged)]
        assert kinds[:2] == [Pushed, Applied]
        assert world.calls == ["get", "findings", "close", "apply"]
        (entry,) = world.memory.entries(DEMO)
        assert (entry.archive, entry.strategy) == (release.archive.digest, "rolling")
        assert entry.who

    def test_an_unchanged_release_is_not_applied_again(self, world: World) -> None:
        release = world.rollout()
        assert world.rollout() == release
        assert world.calls == ["get"]
        assert world.folder.kinds() == [Pushed, Unchanged]
        assert world.outcomes() == [(release.id, Outcome.READY)]

    def test_a_release_that_became_ready_later_is_noted_as_ready(self, world: World) -> None:
        world.memory.lag = 100
        with pytest.raises(RolloutTimeoutError):
            world.rollout()
        assert world.outcomes()[0][1] is Outcome.TIMED_OUT
        world.memory.lag = 0
        world.rollout()
        assert [outcome for _, outcome in world.outcomes()] == [Outcome.READY]

    def test_an_older_release_is_checked_and_not_pushed(self, world: World) -> None:
        first, _ = world.two()
        assert world.rollout(first.id) == first
        assert world.calls == ["get", "findings", "check", "close", "apply"]
        assert Pushed not in world.folder.kinds()
        assert world.shares() == {first.id: 100}

    def test_a_missing_release_is_an_error_before_the_target_is_read(self, world: World) -> None:
        with pytest.raises(NotFoundError):
            world.rollout("1.0-0123456789ab")
        assert world.calls == []

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
        world.rollout(percent=10)  # a repeated CI job changes nothing
        assert Unchanged in world.folder.kinds()
        assert world.shares() == {second.id: 100}

    def test_a_canary_conflicts_with_a_rollout_in_between(
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
        world.rollout()  # a rollout with all traffic does not depend on the live release

    def test_a_canary_without_permission_to_read_the_journal(
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
        assert "apply" in world.calls

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

    def test_a_rollback_restores_a_live_release_that_was_not_noted_as_ready(self, world: World) -> None:
        first = world.open().rollout(timeout=None)  # Ready is not noted
        world.folder.change(b"v")
        broken = world.open().decide().release
        world.memory.get(DEMO)
        world.memory.broken[broken.id] = "no module named torch"
        with pytest.raises(RolloutFailedError, match="no module named torch") as caught:
            world.rollout(rollback=True)
        assert f"{first.id} is restored and Ready" in (caught.value.hint or "")

    def test_without_a_timeout_it_does_not_wait(self, world: World) -> None:
        release = world.rollout(timeout=None)
        assert world.outcomes() == [(release.id, Outcome.APPLIED)]
        assert "findings without waiting" in world.calls


class TestChecks:
    def test_a_failed_check_is_an_error_before_the_first_write(self, world: World) -> None:
        world.memory.found = [failure("quota", "no room", "namespace default", "ask for more")]
        with pytest.raises(ConfigError, match="no room"):
            world.rollout()
        assert world.calls == ["get", "findings"]
        assert world.store.releases() == []

    def test_warnings_are_emitted(self, world: World) -> None:
        world.memory.found = [warning("quota", "little room", "namespace default", "ask for more")]
        world.rollout()
        assert Warned("little room: ask for more") in world.events

    def test_a_strategy_that_the_target_lacks_is_an_error(self, world: World) -> None:
        with pytest.raises(ConfigError, match="Standard mode"):
            world.rollout(strategy=Strategy.RECREATE)

    def test_a_local_target_needs_a_store_on_this_machine(self, world: World) -> None:
        world.memory.features["local_storage_only"] = True
        world.rollout()
        world.folder.change(b"v")
        with pytest.raises(ConfigError, match="not from s3://") as caught:
            world.open(store__uri="s3://models/demo").rollout()
        assert caught.value.where == "store.uri"


class TestDecision:
    def test_a_decision_has_the_changes_and_changes_nothing(self, world: World) -> None:
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
        assert "apply" not in world.calls

    def test_stuck_pods_are_stopped_first_with_a_warning(self, world: World) -> None:
        stuck = world.rollout()
        live = world.memory.get(DEMO)
        assert live
        running = (Revision("r1", stuck.id, pods=1),)
        status = msgspec.structs.replace(live.status, traffic=(), revisions=running)
        world.memory.features["deployment_mode"] = "Standard"
        world.memory.get = lambda _: Live(live.document, status)  # type: ignore[method-assign]
        world.folder.change(b"v")
        world.store.given = ACCESS
        decision = world.open().decide()
        assert decision.strategy is Strategy.RECREATE
        assert decision.bundle.service["spec"]["predictor"]["deploymentStrategy"] == {"type": "Recreate"}
        assert decision.warnings == (
            f"no release answers requests, so kdeploy stops the pods of {stuck.id} first",
            "the token expires in an hour",
        )

    def test_an_unchanged_service_is_not_checked(self, world: World) -> None:
        world.rollout()
        world.memory.found = [failure("quota", "no room", "", "")]
        rollouts = world.open()
        decision = rollouts.decide(check=True, preview=True)
        assert decision.unchanged
        assert (decision.changes, decision.findings) == ((), ())
        rollouts.report(decision)

    def test_a_role_needs_no_credentials(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_without_look_the_target_is_not_read(self, world: World) -> None:
        decision = world.open().decide(percent=10, look=False)
        assert (decision.bundle.percent, decision.live) == (10, None)
        assert world.calls == []

    def test_check_admission_returns_the_error_of_the_target(self, world: World) -> None:
        rollouts = world.open()
        assert rollouts.check_admission(rollouts.decide().bundle).status == "ok"
        world.memory.refusal = TargetError("the webhook denied it", where="spec.predictor", hint="raise it")
        found = rollouts.check_admission(rollouts.decide().bundle)
        assert (found.status, found.detail) == ("failure", "the webhook denied it")
        assert (found.where, found.remedy) == ("spec.predictor", "raise it")

    def test_overlays_are_validated_before_the_first_write(self, world: World) -> None:
        world.memory.refusal = RolloutFailedError("spec.predictor.nope: not in the schema")
        overlay = {"spec": {"predictor": {"nope": 1}}}
        overlaid = {"serving.overlay": msgspec.json.encode(overlay).decode()}
        for rollouts in (world.open(overlay), world.open(**overlaid)):
            with pytest.raises(ConfigError, match=r"spec\.predictor\.nope"):
                rollouts.rollout(timeout=30.0)
            assert world.store.releases() == []
            assert not {"findings", "apply"} & {*world.calls}
        world.memory.refusal = TargetError("the namespace does not exist")
        world.memory.found = [failure("namespace", "no namespace", "", "")]
        assert [one.detail for one in world.open(overlay).decide(check=True).findings] == ["no namespace"]

    def test_is_stored_is_none_if_the_lookup_has_side_effects(self, world: World) -> None:
        rollouts = world.open()
        release = rollouts.decide().release
        assert rollouts.is_stored(release) is False
        world.rollout()
        assert rollouts.is_stored(release) is True
        world.store.lookup_is_side_effect_free = False
        assert rollouts.is_stored(release) is None


class TestSecrets:
    def test_a_secret_reaches_only_the_target(self, world: World) -> None:
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

    def test_a_warning_about_credentials_is_emitted_if_a_release_is_applied(self, world: World) -> None:
        world.store.given = ACCESS
        world.rollout()
        assert Warned("the token expires in an hour") in world.events
        world.rollout()
        assert Unchanged in world.folder.kinds()
        assert Warned("the token expires in an hour") not in world.events

    def test_a_rollback_has_the_current_secret(self, world: World) -> None:
        world.store.given = ACCESS
        world.rollout()
        world.folder.change(b"v")
        world.memory.broken[world.open().decide().release.id] = "no module named torch"
        world.store.given = StorageAccess(data={"AWS_SECRET_ACCESS_KEY": "rotated"})
        with pytest.raises(RolloutFailedError):
            world.rollout(rollback=True)
        secrets = [one.document["data"]["AWS_SECRET_ACCESS_KEY"] for one in world.memory.secrets if one]
        assert secrets == ["aHVudGVyMg==", "cm90YXRlZA==", "cm90YXRlZA=="]

    def test_a_rollback_without_credentials_has_no_secret(self, world: World) -> None:
        world.store.given = ACCESS
        world.rollout()
        world.folder.change(b"v")
        world.store.given = None
        world.memory.broken[world.open().decide().release.id] = "no module named torch"
        with pytest.raises(RolloutFailedError):
            world.rollout(rollback=True)
        assert world.memory.secrets[1:] == [None, None]
