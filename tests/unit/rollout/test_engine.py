"""The steps of a rollout: the state and the actions after each event."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from deployer.errors import (
    ConflictError,
    KdeployError,
    RolloutFailedError,
    RolloutTimeoutError,
    StoreError,
    TargetError,
)
from deployer.events import Noted, StatusChanged
from deployer.journal import Entry, JournalEvent, Outcome
from deployer.observed import Observed, Phase, Revision, Share
from deployer.rollout import engine
from deployer.rollout.engine import Apply, Note, ReadJournal, Rollout, Stage, Watch
from deployer.rollout.plan import Plan
from tests.bundles import ALICE, DEMO, A, B, C, make_bundle, make_entry

BUNDLE = make_bundle(B)
READY_A = structs.replace(make_entry(make_bundle(A)), number=3, outcome=Outcome.READY)


def plan(*, percent: int = 100, **more: Any) -> Plan:
    bundle = make_bundle(B, percent=percent)
    entry = make_entry(bundle, stable=A if percent < 100 else None)
    return Plan(bundle=bundle, entry=entry, **{"timeout": 5.0, **more})


def observed(phase: Phase, release: str | None = B, **more: Any) -> Observed:
    return Observed(reference=DEMO, wanted=release, phase=phase, **more)


def waiting(of: Plan | None = None, *seen: Observed) -> Rollout:
    """A rollout that was applied as entry 7 and has seen these statuses."""
    state, _ = engine.begin(of or plan())
    state, _ = engine.step(state, engine.Applied(7))
    for one in seen:
        state, _ = engine.step(state, engine.Seen(one))
    return state


def noted(outcome: Outcome, reason: str = "", number: int = 7) -> Note:
    return Note(number, JournalEvent(outcome=outcome, reason=reason, who=ALICE))


def end(state: Rollout, event: engine.Event) -> KdeployError:
    """Return the error of a rollout that ends with this event."""
    state, _ = engine.step(state, event)
    assert state.stage is Stage.DONE
    assert state.error
    return state.error


def failed(**more: Any) -> engine.Seen:
    return engine.Seen(observed(Phase.FAILED, **more))


class TestReady:
    def test_a_rollout_applies_waits_and_notes_ready(self) -> None:
        of = plan(expect=6)
        state, actions = engine.begin(of)
        assert actions == (Apply(of.bundle, of.entry, 6),)
        state, actions = engine.step(state, engine.Applied(7))
        assert actions == (Watch(5.0, None),)
        progress, ready = observed(Phase.PROGRESSING), observed(Phase.READY)
        state, actions = engine.step(state, engine.Seen(progress))
        assert actions == (StatusChanged(progress),)
        assert engine.step(state, engine.Seen(progress)) == (state, ())  # an unchanged status is not reported
        state, actions = engine.step(state, engine.Seen(ready))
        assert actions == (StatusChanged(ready), noted(Outcome.READY))
        assert engine.step(state, engine.Seen(ready)) == (state, ())  # the rollout has ended

    def test_without_a_timeout_it_does_not_wait(self) -> None:
        state, _ = engine.begin(plan(timeout=None))
        state, actions = engine.step(state, engine.Applied(7))
        assert (state.stage, actions) == (Stage.DONE, ())

    def test_a_canary_waits_for_its_traffic(self) -> None:
        state, _ = engine.begin(plan(percent=10))
        state, actions = engine.step(state, engine.Applied(7))
        assert actions == (Watch(5.0, A),)
        state, actions = engine.step(state, engine.Seen(observed(Phase.READY, percent=10)))
        assert actions[1:] == (noted(Outcome.READY),)

    @pytest.mark.parametrize(("percent", "seen"), [(100, 10), (50, 10), (10, 100)])
    def test_ready_with_another_percentage_is_progressing(self, percent: int, seen: int) -> None:
        state = waiting(plan(percent=percent))
        state, actions = engine.step(state, engine.Seen(observed(Phase.READY, percent=seen)))
        (report,) = actions
        assert isinstance(report, StatusChanged)
        assert report.status.phase is Phase.PROGRESSING
        error = end(state, engine.Elapsed())
        assert f": waiting for the wanted traffic to be {percent}%, not {seen}%" in error.what

    def test_pods_that_are_still_terminating_are_named(self) -> None:
        holding = observed(Phase.READY, holding=("demo-1", "demo-2"))
        _, actions = engine.step(waiting(), engine.Seen(holding))
        assert actions[2:] == (Noted("still terminating: demo-1, demo-2"),)

    def test_a_failed_apply_ends_the_rollout(self) -> None:
        state, _ = engine.begin(plan(rollback=True))
        error = StoreError("the network broke")
        state, actions = engine.step(state, engine.Failed(error))
        assert (state.stage, state.error, actions) == (Stage.DONE, error, ())


class TestFailure:
    def test_a_failure_has_the_reason_and_the_release_that_still_answers(self) -> None:
        event = failed(
            reason="ModelLoadFailed", message="No module named 'foo'.", traffic=(Share("r1", A, 100),)
        )
        _, actions = engine.step(waiting(), event)
        assert actions[:2] == (StatusChanged(event.observed), noted(Outcome.FAILED, "ModelLoadFailed"))
        error = end(waiting(), event)
        assert isinstance(error, RolloutFailedError)
        assert error.what == (
            f"release {B} cannot become ready: ModelLoadFailed: No module named 'foo'; "
            f"{A} still answers requests"
        )
        assert error.where == "default/demo"
        assert error.hint == (
            "Add the line `foo` to the file of model.requirements-file, or add the module to "
            "model.extra-files, then run `kdeploy rollout` again. "
            f"{B} stays applied and takes over if it becomes ready; "
            f"run `kdeploy rollout --release {A}` to go back."
        )

    def test_without_another_release_the_hint_has_no_command_to_go_back(self) -> None:
        event = failed(
            reason="OOMKilled",
            hint="Raise `serving.memory`.",
            log=("a", "b"),
            traffic=(Share("r1", B, 100), Share("r2", A, 0)),
        )
        error = end(waiting(), event)
        assert error.what.endswith("OOMKilled\n  | a\n  | b")
        assert error.hint == f"Raise `serving.memory`. {B} stays applied and takes over if it becomes ready."

    def test_a_timeout_has_the_last_status(self) -> None:
        seen = observed(
            Phase.PROGRESSING, reason="Loading", message="loading", traffic=(Share("r1", A, 100),)
        )
        _, actions = engine.step(waiting(None, seen), engine.Elapsed())
        assert actions[0] == noted(Outcome.TIMED_OUT)
        error = end(waiting(None, seen), engine.Elapsed())
        assert isinstance(error, RolloutTimeoutError)
        assert error.what == (
            f"timed out after 5 s waiting for release {B}: loading; {A} still answers requests"
        )
        assert "takes over when it is ready" in (error.hint or "")
        assert (error.hint or "").endswith(f"or run `kdeploy rollout --release {A}` to go back.")

    def test_a_timeout_without_a_status(self) -> None:
        assert end(waiting(), engine.Elapsed()).what == f"timed out after 5 s waiting for release {B}"

    def test_a_timeout_of_a_stopped_or_silent_service(self) -> None:
        stopped = observed(Phase.STOPPED, reason="Stopped", message="by hand")
        assert end(waiting(None, stopped), engine.Elapsed()).what.endswith(": Stopped: by hand")
        silent = observed(Phase.PROGRESSING, reason="Loading")
        assert end(waiting(None, silent), engine.Elapsed()).what.endswith(f"{B}: Loading")

    def test_a_failed_watch_notes_nothing(self) -> None:
        error = TargetError("the supervisor ended")
        state, actions = engine.step(waiting(plan(rollback=True)), engine.Failed(error))
        assert (state.stage, state.error, actions) == (Stage.DONE, error, ())


class TestReplaced:
    @pytest.mark.parametrize("other", [A, None])
    def test_a_replaced_release_is_noted_and_the_journal_is_read(self, other: str | None) -> None:
        seen = observed(Phase.READY, other)
        state, actions = engine.step(waiting(), engine.Seen(seen))
        assert actions == (StatusChanged(seen), noted(Outcome.REPLACED), ReadJournal())
        assert state.stage is Stage.REPLACED

    @pytest.mark.parametrize(
        ("release", "message"),
        [
            (A, f"alice@laptop applied release {A} at 12:03:11 UTC while {B} was being rolled out"),
            (B, f"release {A} was applied while {B} was being rolled out"),
        ],
    )
    def test_the_error_names_the_author_if_the_journal_has_it(self, release: str, message: str) -> None:
        state = waiting(None, observed(Phase.READY, A))
        entry = Entry(release=release, who=ALICE, when="2026-01-01T12:03:11Z")
        error = end(state, engine.Read([entry]))
        assert isinstance(error, ConflictError)
        assert (error.what, error.where) == (message, "default/demo")
        assert "run `kdeploy rollout` again" in (error.hint or "")

    def test_without_a_readable_journal_the_error_names_no_author(self) -> None:
        state = waiting(None, observed(Phase.READY, A))
        for event in (engine.Read([]), engine.Failed(TargetError("unreachable"))):
            error = end(state, event)
            assert isinstance(error, ConflictError)
            assert error.what == f"release {A} was applied while {B} was being rolled out"


class TestRollback:
    RECALLING = waiting(
        plan(rollback=True, percent=10), observed(Phase.FAILED, reason="OOMKilled", hint="Fix it.")
    )
    RESTORING = engine.step(engine.step(RECALLING, engine.Read([READY_A]))[0], engine.Applied(8))[0]

    @pytest.mark.parametrize("event", [failed(reason="OOMKilled"), engine.Elapsed()])
    def test_a_rollback_reads_the_journal_first(self, event: engine.Event) -> None:
        state, actions = engine.step(waiting(plan(rollback=True)), event)
        assert (state.stage, actions[-1]) == (Stage.RECALLING, ReadJournal(look=True))
        assert any(isinstance(one, Note) for one in actions)

    def test_the_last_ready_release_is_restored_with_all_requests(self) -> None:
        newest = structs.replace(READY_A, number=4, release=C, outcome=Outcome.FAILED)
        state, actions = engine.step(self.RECALLING, engine.Read([READY_A, newest]))
        say, apply = actions
        assert say == Noted(f"rolling back to release {A}")
        assert isinstance(apply, Apply)
        assert (apply.bundle, apply.expect) == (READY_A.bundle, 7)
        entry = apply.entry
        assert (entry.release, entry.percent, entry.stable, entry.parent) == (A, 100, None, 3)
        assert (entry.who, entry.bundle) == (ALICE, READY_A.bundle)
        state, actions = engine.step(state, engine.Applied(8))
        assert (state.stage, actions) == (Stage.RESTORING, (Watch(5.0, None),))

    def test_stuck_pods_are_stopped_first_in_standard_mode(self) -> None:
        stuck = observed(Phase.FAILED, revisions=(Revision("r2", B, pods=1),))
        state = waiting(plan(rollback=True, standard=True), stuck)
        _, actions = engine.step(state, engine.Read([READY_A]))
        assert actions[1] == Noted(f"no release answers requests, so kdeploy stops the pods of {B} first")
        apply = actions[2]
        assert isinstance(apply, Apply)
        assert READY_A.bundle
        assert apply.bundle == apply.entry.bundle == READY_A.bundle.recreating()
        assert apply.entry.strategy == "recreate"

    def test_a_changed_overlay_that_fails_is_rolled_back_to_the_overlay_before(self) -> None:
        overlaid = make_bundle(B, overlays=[{"spec": {"predictor": {"nodeSelector": {"pool": "none"}}}}])
        of = Plan(bundle=overlaid, entry=make_entry(overlaid), timeout=5.0, rollback=True, standard=True)
        plain = structs.replace(
            make_entry(make_bundle(B)), number=6, outcome=Outcome.READY, percent=100, events=()
        )
        stuck = observed(Phase.FAILED, revisions=(Revision("r2", B, pods=1),))
        state, actions = engine.step(waiting(of, stuck), engine.Read([READY_A, plain]))
        assert actions[0] == Noted(f"rolling back to release {B} as in entry 6 of the history")
        apply = actions[-1]
        assert isinstance(apply, Apply)
        assert plain.bundle
        assert (apply.bundle, apply.entry.parent) == (plain.bundle.recreating(), 6)
        state, _ = engine.step(state, engine.Applied(8))
        error = end(state, engine.Seen(observed(Phase.READY)))
        assert f"{B} is restored and Ready" in (error.hint or "")

    def test_a_rollback_uses_the_current_state(self) -> None:
        state, _ = engine.step(
            waiting(plan(rollback=True, standard=True), observed(Phase.PROGRESSING)), engine.Elapsed()
        )
        stuck = observed(Phase.PROGRESSING, revisions=(Revision("new", B, pods=1),))
        _, actions = engine.step(state, engine.Read([READY_A], stuck))
        assert isinstance(actions[-1], Apply)
        assert actions[-1].entry.strategy == "recreate"

    def test_a_rollback_ends_with_the_failure_and_the_restored_release(self) -> None:
        ready = engine.Seen(observed(Phase.READY, A))
        _, actions = engine.step(self.RESTORING, ready)
        assert actions[1] == noted(Outcome.READY, number=8)
        error = end(self.RESTORING, ready)
        assert isinstance(error, RolloutFailedError)
        assert error.what == f"release {B} cannot become ready: OOMKilled"
        assert error.hint == f"Fix the cause, then run `kdeploy rollout` again. {A} is restored and Ready."

    @pytest.mark.parametrize("entries", [[], [structs.replace(READY_A, bundle=None)]])
    def test_a_rollback_without_an_earlier_release(self, entries: list[Entry]) -> None:
        error = end(self.RECALLING, engine.Read(entries))
        assert error.what == (
            f"release {B} cannot become ready: OOMKilled; "
            "nothing to roll back to: no other release of default/demo was Ready"
        )
        assert error.hint == f"Fix it. {B} stays applied and takes over if it becomes ready."

    @pytest.mark.parametrize(
        ("state", "event", "message"),
        [
            (RECALLING, engine.Failed(TargetError("unreachable")), "; cannot roll back: unreachable"),
            (
                RESTORING,
                engine.Failed(TargetError("unreachable")),
                f"; rolling back to {A} failed: unreachable",
            ),
            (
                RESTORING,
                engine.Elapsed(),
                f"; rolling back to {A} failed: timed out after 5 s waiting for release {A}",
            ),
            (
                RESTORING,
                engine.Seen(observed(Phase.FAILED, A, reason="NoNode")),
                f"; rolling back to {A} failed: release {A} cannot become ready: NoNode",
            ),
        ],
    )
    def test_a_failed_rollback_reports_both_errors(
        self, state: Rollout, event: engine.Event, message: str
    ) -> None:
        error = end(state, event)
        assert isinstance(error, RolloutFailedError)
        assert error.what == f"release {B} cannot become ready: OOMKilled{message}"

    def test_a_replaced_rollback_reports_both_errors(self) -> None:
        state, _ = engine.step(self.RESTORING, engine.Seen(observed(Phase.READY, C)))
        error = end(state, engine.Read([]))
        assert error.what.endswith(
            f"; rolling back to {A} failed: release {C} was applied while {A} was being rolled out"
        )
