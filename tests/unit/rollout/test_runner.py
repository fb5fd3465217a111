"""Rollouts on a target in memory: the state that they leave, and the events that they emit."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from msgspec import structs

from deployer.bundle import Bundle, Sealed
from deployer.errors import ConflictError, NotFoundError, RolloutFailedError, TargetError
from deployer.events import Applied, Applying, Event, Noted, StatusChanged, Warned
from deployer.journal import Entry, JournalEvent, Outcome
from deployer.observed import Phase, Reference
from deployer.rollout.plan import Plan
from deployer.rollout.runner import Runner
from deployer.storage_access import StorageAccess
from deployer.targets.memory import MemoryTarget
from deployer.targets.protocols import Target, Watch
from tests.bundles import DEMO, A, B, make_bundle, make_entry
from tests.clocks import FakeClock

SECRET = Sealed({"kind": "Secret", "metadata": {"name": "demo"}, "data": {"key": "aHVudGVyMg=="}})


class Watched(MemoryTarget):
    """A target in memory that keeps the applied Secrets."""

    def __init__(self) -> None:
        super().__init__(clock=FakeClock(), lag=2)
        self.secrets: list[Sealed | None] = []

    def apply(self, bundle: Bundle, entry: Entry, *, expect: int | None = None) -> int:
        self.secrets.append(bundle.secret)
        return super().apply(bundle, entry, expect=expect)


class World:
    def __init__(self) -> None:
        self.memory = Watched()
        self.events: list[Event] = []

    def run(self, release: str, *, percent: int = 100, target: Target | None = None, **more: object) -> None:
        bundle = make_bundle(release, percent=percent)
        entry = make_entry(bundle, stable=A if percent < 100 else None)
        plan = structs.replace(Plan(bundle=bundle, entry=entry, timeout=30.0), **more)
        seal = lambda bundle: structs.replace(bundle, secret=SECRET)  # noqa: E731
        Runner(target or self.memory.target, self.events.append, seal).run(plan)

    def outcomes(self) -> list[tuple[str, Outcome]]:
        return [(entry.release, entry.outcome) for entry in self.memory.entries(DEMO)]

    def kinds(self) -> list[type]:
        return [type(event) for event in self.events]


@pytest.fixture
def world() -> World:
    return World()


def test_a_release_becomes_ready_and_is_noted_as_ready(world: World) -> None:
    world.run(A)
    assert world.outcomes() == [(A, Outcome.READY)]
    named = {"service": "default/demo", "release": A}
    assert world.events[:2] == [Applying(**named), Applied(**named)]
    statuses = [event.status for event in world.events[1:] if isinstance(event, StatusChanged)]
    assert [status.phase for status in statuses] == [Phase.PROGRESSING, Phase.READY]
    (entry,) = world.memory.entries(DEMO)
    assert [event.outcome for event in entry.events] == [Outcome.APPLIED, Outcome.READY]


def test_a_canary_and_its_promotion(world: World) -> None:
    world.run(A)
    world.run(B, percent=10)
    assert world.memory.served[DEMO].traffic == ((B, 10), (A, 90))
    world.run(B)
    assert world.memory.served[DEMO].traffic == ((B, 100),)
    assert world.outcomes() == [(A, Outcome.READY), (B, Outcome.READY), (B, Outcome.READY)]


def test_without_a_timeout_a_rollout_ends_after_apply(world: World) -> None:
    world.run(A, timeout=None)
    assert world.kinds() == [Applying, Applied]
    assert world.outcomes() == [(A, Outcome.APPLIED)]


def test_a_failure_is_noted_and_the_stable_release_still_answers(world: World) -> None:
    world.run(A)
    world.memory.broken[B] = "no module named torch"
    with pytest.raises(RolloutFailedError, match=f"no module named torch; {A} still answers requests"):
        world.run(B)
    assert world.outcomes() == [(A, Outcome.READY), (B, Outcome.FAILED)]
    assert world.memory.entries(DEMO)[-1].reason == "ModelLoadFailed"
    assert world.memory.served[DEMO].traffic == ((A, 100),)


def test_a_timeout_is_noted(world: World) -> None:
    world.memory.lag = 100
    with pytest.raises(Exception, match="timed out after 30 s"):
        world.run(A)
    assert world.outcomes() == [(A, Outcome.TIMED_OUT)]


def test_a_rollback_is_a_new_entry_with_the_current_secret(world: World) -> None:
    world.run(A)
    world.memory.broken[B] = "no module named torch"
    with pytest.raises(RolloutFailedError) as caught:
        world.run(B, rollback=True)
    assert f"{A} is restored and Ready" in (caught.value.hint or "")
    assert world.outcomes() == [(A, Outcome.READY), (B, Outcome.FAILED), (A, Outcome.READY)]
    restored = world.memory.entries(DEMO)[-1]
    assert (restored.parent, restored.percent) == (1, 100)
    assert Noted(f"rolling back to release {A}") in world.events
    assert world.memory.secrets == [SECRET] * 3
    assert "aHVudGVyMg" not in str(world.memory.entries(DEMO)) + str(world.events)


def test_a_rollback_of_the_first_release_restores_nothing(world: World) -> None:
    world.memory.broken[B] = "no module named torch"
    with pytest.raises(RolloutFailedError) as caught:
        world.run(B, rollback=True)
    assert "nothing to roll back to" in caught.value.what
    assert world.outcomes() == [(B, Outcome.FAILED)]


def test_a_decision_based_on_an_older_entry_is_not_applied(world: World) -> None:
    world.run(A)
    with pytest.raises(ConflictError, match="in the meantime"):
        world.run(B, expect=0)
    assert world.outcomes() == [(A, Outcome.READY)]


class Interfering(Watched):
    """A target that another user changes while a rollout is watched."""

    def watch(self, reference: Reference, timeout: float, stable: str | None = None) -> Watch:
        for observed in super().watch(reference, timeout, stable):
            yield observed
            self.interfere()

    def interfere(self) -> None:
        raise NotImplementedError


class Replacing(Interfering):
    def interfere(self) -> None:
        other = make_bundle(B)
        self.apply(other, make_entry(other, who="bob@desk"))


class Deleting(Interfering):
    def interfere(self) -> None:
        self.delete(DEMO)


def test_a_replaced_rollout_names_the_author(world: World) -> None:
    world.memory = Replacing()
    with pytest.raises(ConflictError, match=rf"bob@desk applied release {B} at 00:00:0. UTC while {A}"):
        world.run(A)
    assert world.outcomes()[0] == (A, Outcome.REPLACED)


def test_a_rollout_of_a_deleted_service_ends(world: World) -> None:
    world.memory = Deleting()
    with pytest.raises(NotFoundError, match="default/demo not found"):
        world.run(A, rollback=True)


class ReadOnly(Watched):
    def note(self, reference: Reference, number: int, event: JournalEvent) -> None:
        raise TargetError("the disk is full")


def test_a_failed_note_is_only_a_warning(world: World) -> None:
    world.memory = ReadOnly()
    world.run(A)
    assert world.outcomes() == [(A, Outcome.APPLIED)]
    assert Warned("cannot note in the journal how the rollout ended: the disk is full") in world.events


class Holding(Watched):
    def watch(self, reference: Reference, timeout: float, stable: str | None = None) -> Watch:
        for observed in super().watch(reference, timeout, stable):
            yield structs.replace(observed, holding=("demo-1",))


@pytest.mark.parametrize("release", [A, B])
def test_the_watch_is_closed(world: World, release: str) -> None:
    class Watching(MemoryTarget):
        closed = 0

        def watch(self, *given: Any) -> Watch:
            try:
                yield from super().watch(*given)
            finally:
                self.closed += 1

    target = Watching(clock=FakeClock())
    target.broken[B] = "no"
    with contextlib.suppress(RolloutFailedError):
        world.run(release, target=target.target)
    assert target.closed == 1


def test_terminating_pods_are_noted(world: World) -> None:
    world.memory = Holding()
    world.run(A)
    assert world.events[-1] == Noted("still terminating: demo-1")


def test_the_journal_does_not_keep_the_secret(world: World) -> None:
    bundle = make_bundle(A, access=StorageAccess(data={"KEY": "hunter2"}))
    Runner(world.memory.target, world.events.append, lambda bundle: bundle).run(
        Plan(bundle=bundle, entry=make_entry(bundle))
    )
    assert world.memory.secrets == [bundle.secret]
    assert world.memory.served[DEMO].bundle.secret is None
