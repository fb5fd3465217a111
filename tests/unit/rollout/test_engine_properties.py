"""Rollouts on a faulty target: a release always answers, and a repeated rollout succeeds."""

from __future__ import annotations

import contextlib
import functools

from hypothesis import given, settings
from hypothesis import strategies as st

from deployer.bundle import Bundle
from deployer.errors import KdeployError, RolloutFailedError
from deployer.journal import Outcome, last_ready
from deployer.observed import Observed, Phase
from deployer.rollout.plan import Plan, decide_traffic
from deployer.rollout.runner import Runner
from deployer.rollouts import correct_outcome
from tests.bundles import DEMO, A, B, make_bundle, make_entry
from tests.clocks import FakeClock
from tests.unit.rollout.faulty import CrashError, Fault, FaultyTarget

EXAMPLES = 5 * settings.default.max_examples  # 500, and 5,000 with the profile `full`
TIMEOUT = 30.0  # seconds of the fake clock

SCRIPTS = st.lists(st.none() | st.sampled_from(Fault), max_size=12)
PERCENTS = st.sampled_from([0, 10, 50, 100])


@functools.cache
def bundle_of(release: str, percent: int) -> Bundle:
    return make_bundle(release, percent=percent)


class World:
    """A faulty target, its clock, and a user who rolls out."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.faulty = FaultyTarget(self.clock)

    def rollout(self, release: str, percent: int, *, rollback: bool = False) -> int:
        """Decide and roll out, as Rollouts does; return the percentage that was decided."""
        began, self.faulty.calls = self.clock.now(), 0
        target = self.faulty.target
        live = target.services.get(DEMO)
        traffic, _ = decide_traffic(percent, release, live)
        bundle = bundle_of(release, traffic.percent)
        if live:
            correct_outcome(target, live.status)
            if target.services.serves(bundle, live):
                return traffic.percent
        entry = make_entry(bundle, stable=traffic.stable)
        plan = Plan(bundle=bundle, entry=entry, timeout=TIMEOUT, rollback=rollback)
        try:
            Runner(target, lambda event: None, lambda bundle: bundle).run(plan)
        finally:
            assert self.clock.now() - began <= 2 * TIMEOUT + 2, "a wait exceeds its timeout"
        return traffic.percent

    def try_rollout(self, script: list[Fault | None], release: str, percent: int, *, rollback: bool) -> None:
        """Roll out with the script's faults, then remove the faults."""
        self.faulty.script = list(script)
        with contextlib.suppress(KdeployError, CrashError):
            self.rollout(release, percent, rollback=rollback)
        self.faulty.script, self.faulty.memory.lag = [], 0

    def observed(self) -> Observed:
        live = self.faulty.memory.get(DEMO)
        assert live
        return live.status

    def check_settled(self, release: str, percent: int) -> None:
        observed, newest = self.observed(), self.faulty.memory.entries(DEMO)[-1]
        assert (observed.phase, observed.wanted) == (Phase.READY, release)
        shares = {share.release: share.percent for share in observed.traffic}
        assert shares.get(release, 0) == percent
        assert (newest.release, newest.outcome, newest.percent) == (release, Outcome.READY, percent)

    def check_replaced(self) -> None:
        """Check that a replaced rollout keeps that outcome, unless the target returned stale states."""
        for entry in self.faulty.memory.entries(DEMO):
            if Outcome.REPLACED in [event.outcome for event in entry.events]:
                assert entry.outcome is Outcome.REPLACED or Fault.STALE in self.faulty.faults


@settings(max_examples=EXAMPLES)
@given(
    before=st.sampled_from([(), ((A, 100),), ((A, 100), (B, 10)), ((B, 100), (A, 50))]),
    script=SCRIPTS,
    percent=PERCENTS,
    rollback=st.booleans(),
    lag=st.integers(0, 3),
)
def test_a_repeated_rollout_succeeds(
    before: tuple[tuple[str, int], ...], script: list[Fault | None], percent: int, rollback: bool, lag: int
) -> None:
    world = World()
    for release, share in before:
        world.rollout(release, share)
    world.faulty.memory.lag = lag
    world.try_rollout(script, B, percent, rollback=rollback)
    world.check_settled(B, world.rollout(B, percent, rollback=rollback))
    world.check_replaced()


@settings(max_examples=EXAMPLES)
@given(script=SCRIPTS, percent=PERCENTS, rollback=st.booleans(), again=st.booleans())
def test_a_release_that_cannot_load_never_gets_a_request(
    script: list[Fault | None], percent: int, rollback: bool, again: bool
) -> None:
    world = World()
    world.rollout(A, 100)
    world.faulty.memory.broken[B] = "no module named torch"
    world.try_rollout(script, B, percent, rollback=rollback)
    try:
        world.rollout(B, percent, rollback=again)
    except RolloutFailedError as error:
        entries = world.faulty.memory.entries(DEMO)
        good = last_ready(entries, make_entry(make_bundle(B)))
        restored = good.release if again and good else None
        assert ("is restored and Ready" in (error.hint or "")) == bool(restored)
        if restored:
            world.check_settled(restored, 100)
        else:
            assert (entries[-1].release, entries[-1].outcome) == (B, Outcome.FAILED)
            assert world.observed().phase is Phase.FAILED
    else:
        raise AssertionError("a broken release became ready")
    world.check_replaced()
    world.faulty.memory.broken.clear()
    world.check_settled(B, world.rollout(B, percent))


@settings(max_examples=EXAMPLES)
@given(scripts=st.lists(st.tuples(SCRIPTS, st.sampled_from([A, B]), PERCENTS, st.booleans()), max_size=5))
def test_any_sequence_of_faulty_rollouts(scripts: list[tuple[list[Fault | None], str, int, bool]]) -> None:
    world = World()
    for script, release, percent, rollback in scripts:
        world.try_rollout(script, release, percent, rollback=rollback)
    for release in (A, B):
        world.check_settled(release, world.rollout(release, 100))
    world.check_replaced()
