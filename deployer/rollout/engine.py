"""How a rollout advances: `step` takes its state and an event, and returns the next state and actions. Pure.

The runner performs the actions and returns what happened. An interrupted rollout starts again with the same
plan: applying is idempotent, and the observed state decides what is left to do.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from msgspec import Struct, structs

from deployer.bundle import Bundle
from deployer.errors import ConflictError, KdeployError, RolloutFailedError, RolloutTimeoutError
from deployer.events import Noted, StatusChanged
from deployer.journal import Entry, JournalEvent, Outcome, describe_author, last_ready
from deployer.observed import NOT_SWITCHED, Observed, Phase
from deployer.rollout.missing_modules import advise
from deployer.rollout.plan import Plan, Strategy, decide_strategy


class Stage(enum.Enum):
    """The stage of a rollout."""

    APPLYING = "applying"
    WAITING = "waiting"
    REPLACED = "replaced"  # another release is wanted now; the journal names its author
    RECALLING = "recalling"  # reading the journal for a release to restore
    RESTORING = "restoring"  # applying that release, then waiting for it
    DONE = "done"


class Rollout(Struct, frozen=True, kw_only=True):
    """The state of one rollout: its entry's number, and why its release did not become ready, if so."""

    plan: Plan
    stage: Stage = Stage.APPLYING
    number: int = 0
    seen: Observed | None = None
    error: KdeployError | None = None
    restored: Entry | None = None

    @property
    def wanted(self) -> Entry:
        """What is wanted now: the plan's release, or the release that is being restored."""
        return self.restored or self.plan.entry

    @property
    def release(self) -> str:
        """The release that is wanted now."""
        return self.wanted.release


class Applied(Struct, frozen=True):
    """The documents are applied; the journal's entry has this number."""

    number: int


class Seen(Struct, frozen=True):
    """The service was observed."""

    observed: Observed


class Elapsed(Struct, frozen=True):
    """The timeout has passed, or the watch has ended."""


class Read(Struct, frozen=True):
    """The journal was read, and the service observed if the action asked for it."""

    entries: Sequence[Entry]
    observed: Observed | None = None


class Failed(Struct, frozen=True):
    """An action failed."""

    error: KdeployError


class Apply(Struct, frozen=True):
    """Apply a bundle with a journal entry. If `expect` is given, the newest entry must have that number."""

    bundle: Bundle
    entry: Entry
    expect: int | None = None


class Watch(Struct, frozen=True):
    """Observe the service until another action is due, or for `timeout` seconds."""

    timeout: float
    stable: str | None


class ReadJournal(Struct, frozen=True):
    """Read the journal of the service; with `look`, also observe the service."""

    look: bool = False


class Note(Struct, frozen=True):
    """Add an event to a journal entry."""

    number: int
    event: JournalEvent


Event = Applied | Seen | Elapsed | Read | Failed
Action = Apply | Watch | ReadJournal | Note | StatusChanged | Noted
Step = tuple[Rollout, tuple[Action, ...]]


def begin(plan: Plan) -> Step:
    """Return the first state of a rollout and its first actions."""
    return Rollout(plan=plan), (Apply(plan.bundle, plan.entry, plan.expect),)


def step(state: Rollout, event: Event) -> Step:
    """Return the state after an event, and the actions that follow from it."""
    if state.stage is Stage.DONE:
        return state, ()
    match event:
        case Applied(number):
            return _applied(state, number)
        case Seen(observed):
            return _seen(state, observed)
        case Elapsed():
            return _give_up(state, _timed_out(state), Outcome.TIMED_OUT)
        case Read(entries, observed):
            return _read(structs.replace(state, seen=observed or state.seen), entries)
    return _failed(state, event.error), ()


def _applied(state: Rollout, number: int) -> Step:
    stage = Stage.RESTORING if state.restored else Stage.WAITING
    state = structs.replace(state, stage=stage, number=number, seen=None)
    timeout = state.plan.timeout
    return (_succeeded(state), ()) if timeout is None else (state, (Watch(timeout, state.wanted.stable),))


def _seen(state: Rollout, observed: Observed) -> Step:
    percent = state.wanted.percent
    if observed.phase is Phase.READY and observed.percent != percent:
        # This is the state before this rollout, or another rollout's.
        message = f"waiting for the wanted traffic to be {percent}%, not {observed.percent}%"
        observed = structs.replace(observed, phase=Phase.PROGRESSING, reason=NOT_SWITCHED, message=message)
    report = (StatusChanged(observed),) if observed != state.seen else ()
    state = structs.replace(state, seen=observed)
    if observed.wanted != state.release:
        state = structs.replace(state, stage=Stage.REPLACED)
        return state, (*report, _note(state, Outcome.REPLACED), ReadJournal())
    if observed.phase is Phase.READY:
        held = (Noted(f"still terminating: {', '.join(observed.holding)}"),) if observed.holding else ()
        return _succeeded(state), (*report, _note(state, Outcome.READY), *held)
    if observed.phase is Phase.FAILED:
        state, actions = _give_up(state, _cannot_become_ready(state), Outcome.FAILED, observed.reason)
        return state, (*report, *actions)
    return state, report


def _give_up(state: Rollout, error: KdeployError, outcome: Outcome, reason: str = "") -> Step:
    """End the wait for a release that did not become ready, or look for a release to restore."""
    note = _note(state, outcome, reason)
    if state.plan.rollback and not state.restored:
        return structs.replace(state, stage=Stage.RECALLING, error=error), (note, ReadJournal(look=True))
    return _failed(state, error), (note,)


def _read(state: Rollout, entries: Sequence[Entry]) -> Step:
    if state.stage is Stage.REPLACED:
        return _failed(state, _replaced(state, entries)), ()
    assert state.error
    entry = last_ready(entries, state.plan.entry)
    if entry is None or entry.bundle is None:
        nothing = f"; nothing to roll back to: no other release of {state.plan.bundle.reference} was Ready"
        error = _reworded(state.error, more=nothing)
        return structs.replace(state, stage=Stage.DONE, error=error), ()
    kept = entry.release if entry.release != state.release else None
    strategy, warning = decide_strategy(None, kept, state.seen, standard=state.plan.standard)
    bundle = entry.bundle.recreating() if strategy is Strategy.RECREATE else entry.bundle
    restored = structs.replace(
        state.plan.entry,
        release=entry.release,
        archive=entry.archive,
        bundle=bundle,
        percent=100,
        stable=None,
        strategy=strategy.value,
        parent=entry.number,
    )
    earlier = "" if kept else f" as in entry {entry.number} of the history"
    notes = (
        Noted(f"rolling back to release {entry.release}{earlier}"),
        *((Noted(warning),) if warning else ()),
    )
    state = structs.replace(state, stage=Stage.RESTORING, restored=restored)
    return state, (*notes, Apply(bundle, restored, state.number))


def _failed(state: Rollout, error: KdeployError) -> Rollout:
    """End with an error; the error of a rollback is added to the error that caused the rollback."""
    if state.stage is Stage.REPLACED and not isinstance(error, ConflictError):  # the journal is unreadable
        error = _replaced(state, ())
    if state.error:
        what = f"rolling back to {state.restored.release} failed" if state.restored else "cannot roll back"
        error = _reworded(state.error, more=f"; {what}: {error.what}", hint=error.hint, cause=error)
    return structs.replace(state, stage=Stage.DONE, error=error)


def _succeeded(state: Rollout) -> Rollout:
    """End well; a rollback still ends with the error that caused it."""
    error = state.error
    if error and state.restored:
        restored = f"{state.restored.release} is restored and Ready."
        error = _reworded(error, hint=f"Fix the cause, then run `kdeploy rollout` again. {restored}")
    return structs.replace(state, stage=Stage.DONE, error=error)


def _note(state: Rollout, outcome: Outcome, reason: str = "") -> Note:
    return Note(state.number, JournalEvent(outcome=outcome, reason=reason, who=state.plan.entry.who))


def _reworded(
    error: KdeployError, *, more: str = "", hint: str | None = None, cause: KdeployError | None = None
) -> KdeployError:
    reworded = type(error)(error.what + more, where=error.where, hint=hint or error.hint)
    reworded.__cause__ = cause or error.__cause__
    return reworded


def _replaced(state: Rollout, entries: Sequence[Entry]) -> KdeployError:
    """Return the error for a replaced release, with the author of the other one if the journal has it."""
    assert state.seen
    other, newest = state.seen.wanted, entries[-1] if entries else None
    what = f"release {other} was applied"
    if newest and newest.release == other:
        what = f"{describe_author(newest)} applied release {other} at {newest.when[11:19]} UTC"
    return ConflictError(
        f"{what} while {state.release} was being rolled out",
        where=str(state.plan.bundle.reference),
        hint="Run `kdeploy status` to see the live release, or run `kdeploy rollout` again to replace it.",
    )


def _timed_out(state: Rollout) -> KdeployError:
    release, (why, way_back) = state.release, _explain(state.seen)
    return RolloutTimeoutError(
        f"timed out after {state.plan.timeout:g} s waiting for release {release}{why}",
        where=str(state.plan.bundle.reference),
        hint=f"{release} stays applied and takes over when it is ready: check `kdeploy status`"
        + (f", or {way_back}." if way_back else "."),
    )


def _cannot_become_ready(state: Rollout) -> KdeployError:
    release, seen, (why, way_back) = state.release, state.seen, _explain(state.seen)
    assert seen
    log = "".join(f"\n  | {line}" for line in seen.log)
    fix = advise(seen.explanation) or seen.hint or "Fix the cause, then run `kdeploy rollout` again."
    then = "is not restarted until then" if seen.given_up else "takes over if it becomes ready"
    return RolloutFailedError(
        f"release {release} cannot become ready{why}{log}",
        where=str(seen.reference),
        hint=f"{fix.removesuffix('.')}. {release} stays applied and {then}"
        + (f"; {way_back}." if way_back else "."),
    )


def _explain(seen: Observed | None) -> tuple[str, str]:
    """Return why a release is not ready and which release answers instead, and how to go back to that one."""
    if seen is None:
        return "", ""
    why = f": {seen.explanation.removesuffix('.')}" if seen.explanation else ""
    other = next((one.release for one in seen.traffic if one.percent and one.release != seen.wanted), None)
    if other is None:
        return why, ""
    return f"{why}; {other} still answers requests", f"run `kdeploy rollout --release {other}` to go back"
