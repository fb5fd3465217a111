"""Rollouts performed on a target in memory: what it is left with, and what is told meanwhile."""

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
    """A target in memory that remembers the Secrets it was given."""

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


def test_a_release_becomes_ready_and_the_journal_says_so(world: World) -> None:
    world.run(A)
    assert world.outcomes() == [(A, Outcome.READY)]
    told = {"service": "default/demo", "release": A}
    assert world.events[:2] == [Applying(**told), Applied(**told)]
    told = [event.status for event in world.events[1:] if isinstance(event, StatusChanged)]
    assert [status.phase for status in told] == [Phase.PROGRESSING, Phase.READY]
    (entry,) = world.memory.entries(DEMO)
    assert [event.outcome for event in entry.events] == [Outcome.APPLIED, Outcome.READY]


def test_a_canary_and_its_promotion(world: World) -> None:
    world.run(A)
    world.run(B, percent=10)
    assert world.memory.served[DEMO].traffic == ((B, 10), (A, 90))
    world.run(B)
    assert world.memory.served[DEMO].traffic == ((B, 100),)
    assert world.outcomes() == [(A, Outcome.READY), (B, Outcome.READY), (B, Outcome.READY)]


def test_without_a_timeout_it_ends_when_it_is_applied(world: World) -> None:
    world.run(A, timeout=None)
    assert world.kinds() == [Applying, Applied]
    assert world.outcomes() == [(A, Outcome.APPLIED)]


def test_a_failure_is_noted_and_raised_and_the_old_release_serves(world: World) -> None:
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


def test_a_rollback_is_an_entry_of_its_own_with_the_secret_of_today(world: World) -> None:
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


def test_a_rollback_of_the_first_release_has_nothing_to_go_back_to(world: World) -> None:
    world.memory.broken[B] = "no module named torch"
    with pytest.raises(RolloutFailedError) as caught:
        world.run(B, rollback=True)
    assert "Nothing to roll back to" in (caught.value.hint or "")
    assert world.outcomes() == [(B, Outcome.FAILED)]


def test_what_was_decided_on_an_older_entry_is_not_applied(world: World) -> None:
    world.run(A)
    with pytest.raises(ConflictError, match="in the meantime"):
        world.run(B, expect=0)
    assert world.outcomes() == [(A, Outcome.READY)]


class Between(Watched):
    """Somebody else does something while a rollout is watched."""

    def watch(self, reference: Reference, timeout: float, stable: str | None = None) -> Watch:
        for observed in super().watch(reference, timeout, stable):
            yield observed
            self.come_between()

    def come_between(self) -> None:
        raise NotImplementedError


class Replacing(Between):
    def come_between(self) -> None:
        other = make_bundle(B)
        self.apply(other, make_entry(other, who="bob@desk"))


class Deleting(Between):
    def come_between(self) -> None:
        self.delete(DEMO)


def test_a_rollout_that_is_replaced_says_by_whom(world: World) -> None:
    world.memory = Replacing()
    with pytest.raises(ConflictError, match=rf"bob@desk applied release {B} at 00:00:0. UTC while {A}"):
        world.run(A)
    assert world.outcomes()[0] == (A, Outcome.REPLACED)


def test_a_service_that_is_deleted_meanwhile_is_not_waited_for(world: World) -> None:
    world.memory = Deleting()
    with pytest.raises(NotFoundError, match="default/demo not found"):
        world.run(A, rollback=True)


class Forgetful(Watched):
    def note(self, reference: Reference, number: int, event: JournalEvent) -> None:
        raise TargetError("the disk is full")


def test_a_journal_that_cannot_be_written_is_only_a_warning(world: World) -> None:
    world.memory = Forgetful()
    world.run(A)
    assert world.outcomes() == [(A, Outcome.APPLIED)]
    assert Warned("cannot note in the journal how the rollout ended: the disk is full") in world.events


class Holding(Watched):
    def watch(self, reference: Reference, timeout: float, stable: str | None = None) -> Watch:
        for observed in super().watch(reference, timeout, stable):
            yield structs.replace(observed, holding=("demo-1",))


@pytest.mark.parametrize("release", [A, B])
def test_however_it_ends_its_watch_is_closed(world: World, release: str) -> None:
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


def test_pods_that_still_terminate_are_noted(world: World) -> None:
    world.memory = Holding()
    world.run(A)
    assert world.events[-1] == Noted("still terminating: demo-1")


def test_the_secret_of_a_bundle_is_not_told(world: World) -> None:
    bundle = make_bundle(A, access=StorageAccess(data={"KEY": "hunter2"}))
    Runner(world.memory.target, world.events.append, lambda bundle: bundle).run(
        Plan(bundle=bundle, entry=make_entry(bundle))
    )
    assert world.memory.secrets == [bundle.secret]
    assert world.memory.served[DEMO].bundle.secret is None
