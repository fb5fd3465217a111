"""How a rollout advances: `step` takes its state and an event, and returns the next state and actions. Pure.

The runner performs the actions and hands back what happens. A rollout that was interrupted is begun again
with the same plan: applying is idempotent, and what is observed decides the rest.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from msgspec import Struct, structs

from deployer.bundle import Bundle
from deployer.errors import ConflictError, KdeployError, RolloutFailedError, RolloutTimeoutError
from deployer.journal import Entry, JournalEvent, Outcome, describe_author, last_ready
from deployer.observed import NOT_SWITCHED, Observed, Phase
from deployer.rollout.plan import Plan, Strategy, decide_strategy


class Stage(enum.Enum):
    """Where a rollout is."""

    APPLYING = "applying"
    WAITING = "waiting"
    REPLACED = "replaced"  # somebody else's release is wanted now; the journal says whose
    RECALLING = "recalling"  # the journal is read for a release to go back to
    RESTORING = "restoring"  # that release is applied, and then waited for
    DONE = "done"


class Rollout(Struct, frozen=True, kw_only=True):
    """The state of one rollout. `number` is its entry's, `error` why its release did not become ready."""

    plan: Plan
    stage: Stage = Stage.APPLYING
    number: int = 0
    seen: Observed | None = None
    error: KdeployError | None = None
    restored: Entry | None = None

    @property
    def wanted(self) -> Entry:
        """What is wanted now: the plan's release, or the one that is restored."""
        return self.restored or self.plan.entry

    @property
    def release(self) -> str:
        """The release that is wanted now."""
        return self.wanted.release


class Applied(Struct, frozen=True):
    """The documents are applied, as the journal's entry of this number."""

    number: int


class Seen(Struct, frozen=True):
    """The service was observed."""

    observed: Observed


class Elapsed(Struct, frozen=True):
    """The time to wait is over, or nothing more can be seen."""


class Read(Struct, frozen=True):
    """The journal was read, and perhaps the service observed."""

    entries: Sequence[Entry]
    observed: Observed | None = None


class Failed(Struct, frozen=True):
    """An action could not be performed."""

    error: KdeployError


class Apply(Struct, frozen=True):
    """Apply a bundle with an entry of the journal; the newest one must have the number `expect`, if given."""

    bundle: Bundle
    entry: Entry
    expect: int | None = None


class Watch(Struct, frozen=True):
    """Observe the service until something else is to be done, or for `timeout` seconds."""

    timeout: float
    stable: str | None


class ReadJournal(Struct, frozen=True):
    """Read the journal of the service, and look at the service itself if `look`."""

    look: bool = False


class Note(Struct, frozen=True):
    """Add an event to an entry of the journal."""

    number: int
    event: JournalEvent


class Report(Struct, frozen=True):
    """Show what is observed."""

    observed: Observed


class Say(Struct, frozen=True):
    """Tell people something that they should know."""

    note: str


class Finish(Struct, frozen=True):
    """End the rollout: well, or with an error."""

    error: KdeployError | None = None


Event = Applied | Seen | Elapsed | Read | Failed
Action = Apply | Watch | ReadJournal | Note | Report | Say
Step = tuple[Rollout, tuple[Action | Finish, ...]]


def begin(plan: Plan) -> Step:
    """Return the state of a rollout that has not begun, and what to do first."""
    return Rollout(plan=plan), (Apply(plan.bundle, plan.entry, plan.expect),)


def step(state: Rollout, event: Event) -> Step:
    """Return the state after an event, and what to do then."""
    if state.stage is Stage.DONE:
        return state, ()
    if isinstance(event, Applied):
        return _applied(state, event.number)
    if isinstance(event, Seen):
        return _seen(state, event.observed)
    if isinstance(event, Elapsed):
        return _give_up(state, _timed_out(state), Outcome.TIMED_OUT)
    if isinstance(event, Read):
        return _read(structs.replace(state, seen=event.observed or state.seen), event.entries)
    return _failed(state, event.error)


def _applied(state: Rollout, number: int) -> Step:
    stage = Stage.RESTORING if state.restored else Stage.WAITING
    state = structs.replace(state, stage=stage, number=number, seen=None)
    timeout = state.plan.timeout
    if timeout is None:
        return _finish(state)
    return state, (Watch(timeout, state.wanted.stable),)


def _seen(state: Rollout, observed: Observed) -> Step:
    percent = state.wanted.percent
    if observed.phase is Phase.READY and observed.percent != percent:  # as it was before, or others want it
        message = f"waiting for the wanted traffic to be {percent} %, not {observed.percent} %"
        observed = structs.replace(observed, phase=Phase.PROGRESSING, reason=NOT_SWITCHED, message=message)
    report = (Report(observed),) if observed != state.seen else ()
    state = structs.replace(state, seen=observed)
    if observed.wanted != state.release:
        return structs.replace(state, stage=Stage.REPLACED), (
            *report,
            _note(state, Outcome.REPLACED),
            ReadJournal(),
        )
    if observed.phase is Phase.READY:
        held = (Say(f"still terminating: {', '.join(observed.holding)}"),) if observed.holding else ()
        state, finish = _finish(state)
        return state, (*report, _note(state, Outcome.READY), *held, *finish)
    if observed.phase is Phase.FAILED:
        state, actions = _give_up(state, _cannot_become_ready(state), Outcome.FAILED, observed.reason)
        return state, (*report, *actions)
    return state, report


def _give_up(state: Rollout, error: KdeployError, outcome: Outcome, reason: str = "") -> Step:
    """End the wait for a release that did not become ready, or go back to the one before."""
    note = _note(state, outcome, reason)
    if state.plan.rollback and not state.restored:
        return structs.replace(state, stage=Stage.RECALLING, error=error), (note, ReadJournal(look=True))
    state, actions = _failed(state, error)
    return state, (note, *actions)


def _read(state: Rollout, entries: Sequence[Entry]) -> Step:
    if state.stage is Stage.REPLACED:
        return _failed(state, _replaced(state, entries))
    assert state.error
    entry = last_ready(entries, state.release)
    if entry is None or entry.bundle is None:
        nothing = f"nothing to roll back to: no release of {state.plan.bundle.reference} was Ready before"
        return _finish(state, _retold(state.error, hint=f"{nothing}. {state.error.hint}"))
    strategy, warning = decide_strategy(None, entry.release, state.seen, standard=state.plan.standard)
    bundle = entry.bundle.recreating() if strategy is Strategy.RECREATE else entry.bundle
    restoring = structs.replace(
        state.plan.entry,
        release=entry.release,
        archive=entry.archive,
        bundle=bundle,
        percent=100,
        stable=None,
        strategy=strategy.value,
        parent=entry.number,
    )
    notes = (Say(f"rolling back to release {entry.release}"), *((Say(warning),) if warning else ()))
    state = structs.replace(state, stage=Stage.RESTORING, restored=restoring)
    return state, (*notes, Apply(bundle, restoring, state.number))


def _failed(state: Rollout, error: KdeployError) -> Step:
    """End with an error; one that a rollback met is told with the error that it was for."""
    if state.stage is Stage.REPLACED and not isinstance(error, ConflictError):  # the journal cannot be read
        return _failed(state, _replaced(state, ()))
    if state.error:
        what = f"rolling back to {state.restored.release} failed" if state.restored else "cannot roll back"
        error = _retold(state.error, more=f"; {what}: {error.what}", hint=error.hint, cause=error)
    return _finish(state, error)


def _finish(state: Rollout, error: KdeployError | None = None) -> Step:
    if error is None and state.error and state.restored:
        hint = (
            f"fix the cause, then run `kdeploy rollout` again. {state.restored.release} is restored and Ready"
        )
        error = _retold(state.error, hint=hint)
    return structs.replace(state, stage=Stage.DONE), (Finish(error),)


def _retold(
    error: KdeployError, *, more: str = "", hint: str | None = None, cause: KdeployError | None = None
) -> KdeployError:
    retold = type(error)(error.what + more, where=error.where, hint=hint or error.hint)
    retold.__cause__ = cause or error.__cause__
    return retold


def _note(state: Rollout, outcome: Outcome, reason: str = "") -> Note:
    return Note(state.number, JournalEvent(outcome=outcome, reason=reason, who=state.plan.entry.who))


def _replaced(state: Rollout, entries: Sequence[Entry]) -> KdeployError:
    """Say that another release was applied, and by whom if the journal tells."""
    assert state.seen
    other = state.seen.wanted
    by = f"release {other} was applied"
    if entries and entries[-1].release == other:
        newest = entries[-1]
        by = f"{describe_author(newest)} applied release {other} at {newest.when[11:19]} UTC"
    return ConflictError(
        f"{by} while {state.release} was being rolled out",
        where=str(state.plan.bundle.reference),
        hint="`kdeploy status` shows what is live; run `kdeploy rollout` again to replace it",
    )


def _timed_out(state: Rollout) -> KdeployError:
    timeout, last, release = state.plan.timeout, state.seen, state.release
    return RolloutTimeoutError(
        f"timed out after {timeout:g} s waiting for release {release}{_because(last)}{_stays(last)}",
        where=str(state.plan.bundle.reference),
        hint=f"{release} stays applied and takes over when it is ready: `kdeploy status` shows it"
        + _way_back(last),
    )


def _cannot_become_ready(state: Rollout) -> KdeployError:
    seen = state.seen
    assert seen
    log = "".join(f"\n  | {line}" for line in seen.log)
    next_step = seen.hint or "fix the cause, then run `kdeploy rollout` again"
    then = "is not started again before that" if seen.given_up else "takes over if it becomes ready"
    return RolloutFailedError(
        f"release {state.release} cannot become ready{_because(seen).rstrip('.')}{_stays(seen)}{log}",
        where=str(seen.reference),
        hint=f"{next_step}. {state.release} stays applied and {then}" + _way_back(seen),
    )


def _other(seen: Observed | None) -> str | None:
    """Return the release that answers requests instead of the wanted one."""
    shares = seen.traffic if seen else ()
    return next((s.release for s in shares if seen and s.percent and s.release != seen.wanted), None)


def _stays(seen: Observed | None) -> str:
    other = _other(seen)
    return f"; {other} still answers requests" if other else ""


def _way_back(seen: Observed | None) -> str:
    other = _other(seen)
    return f". To go back: `kdeploy rollout --release {other}`" if other else ""


def _because(seen: Observed | None) -> str:
    if seen and seen.phase is Phase.PROGRESSING and seen.message:
        return f": {seen.message}"
    words = [word for word in (seen.reason, seen.message) if word] if seen else []
    return ": " + ": ".join(words) if words else ""
