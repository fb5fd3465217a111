"""The journal: one entry for each rollout of a service, and whether another rollout can begin. Pure.

The fields of an entry never change, except those that come from its events. Any process can add an event; the
newest event is the outcome so far.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Sequence

from msgspec import Struct, structs

from deployer.bundle import Bundle
from deployer.errors import ConflictError

BOUND = 120.0  # seconds after which a rollout that is still applying counts as interrupted
EVENTS_MAX = 50  # an entry keeps its newest events
_TIME = "%Y-%m-%dT%H:%M:%SZ"  # as Kubernetes writes it


class Outcome(enum.Enum):
    """The progress or the result of a rollout."""

    APPLYING = "Applying"
    APPLIED = "Applied"
    READY = "Ready"
    FAILED = "Failed"
    TIMED_OUT = "TimedOut"
    REPLACED = "Replaced"
    INTERRUPTED = "Interrupted"  # it ended before all its documents were applied


class JournalEvent(Struct, frozen=True, kw_only=True):
    """A change of a rollout's outcome, its reason, its author and its time in UTC."""

    outcome: Outcome
    at: str = ""
    reason: str = ""
    who: str = ""


class Provenance(Struct, frozen=True, kw_only=True):
    """The origin of a rollout: `user@machine`, the model archive's digest, the project's commit."""

    who: str = ""
    archive: str = ""
    commit: str = ""


class Entry(Struct, frozen=True, kw_only=True):
    """One rollout of a service. Times are in UTC, as Kubernetes writes them.

    `release` gets `percent` of the requests, and `stable` the rest. `account` is the cluster's user.
    `parent` is the number of the entry that a rollback restores. The bundle has no Secret.
    """

    number: int = 0
    release: str = ""
    archive: str = ""
    percent: int = 100
    stable: str | None = None
    strategy: str = ""
    parent: int | None = None
    who: str = ""
    account: str = ""
    commit: str = ""
    when: str = ""
    outcome: Outcome = Outcome.INTERRUPTED
    reason: str = ""
    since: str = ""
    events: tuple[JournalEvent, ...] = ()
    bundle: Bundle | None = None


def plan_entry(
    bundle: Bundle, provenance: Provenance, *, stable: str | None = None, strategy: str = ""
) -> Entry:
    """Return the entry of a rollout that is about to begin; the target sets its number, time and account."""
    return Entry(
        release=bundle.release,
        archive=provenance.archive,
        percent=bundle.percent,
        stable=stable,
        strategy=strategy,
        who=provenance.who,
        commit=provenance.commit,
        bundle=bundle.without_secret(),
        outcome=Outcome.APPLYING,
    )


def add_event(entry: Entry, event: JournalEvent) -> Entry:
    """Return an entry with one more event."""
    events = (*entry.events, event)[-EVENTS_MAX:]
    return structs.replace(entry, outcome=event.outcome, reason=event.reason, since=event.at, events=events)


def check_expected(newest: Entry | None, expect: int | None, where: str) -> None:
    """Raise ConflictError if the newest entry is not the one that a decision was based on."""
    if expect is None or expect == (newest.number if newest else 0):
        return
    what = "the service was deleted"
    if newest:
        what = f"{describe_author(newest)} rolled out release {newest.release}"
    raise ConflictError(
        f"{what} in the meantime",
        where=where,
        hint="Nothing was changed. Run `kdeploy status` to see the live release.",
    )


def takes_over(newest: Entry, planned: Entry, *, alive: bool | None, now: str, where: str) -> bool:
    """Return whether a rollout continues the newest entry, and does not begin an entry itself.

    `alive` is whether the process that wrote the newest entry still runs, or None if that is unknown. Raises
    ConflictError if another rollout is in progress.
    """
    same = (newest.who, newest.bundle) == (planned.who, planned.bundle)
    if _is_applying(newest, now) and same and not alive:
        return True
    refuse_another(newest, alive=alive, now=now, where=where)
    return False


def refuse_another(newest: Entry, *, alive: bool | None, now: str, where: str) -> None:
    """Raise ConflictError if a rollout is in progress; `alive` as for `takes_over`."""
    if _is_applying(newest, now) and alive is not False:
        since = f"since {newest.since[11:19]} UTC"
        raise ConflictError(
            f"{describe_author(newest)} has been rolling out release {newest.release} {since}",
            where=where,
            hint="Nothing was changed. Run the command again when that rollout has ended.",
        )


def settle(entries: Sequence[Entry], now: str) -> list[Entry]:
    """Return the entries, oldest first; those that are no longer applying have the outcome Interrupted."""
    ordered = sorted(entries, key=lambda entry: entry.number)
    return [
        structs.replace(entry, outcome=Outcome.INTERRUPTED)
        if entry.outcome == Outcome.APPLYING and not (entry is ordered[-1] and _is_applying(entry, now))
        else entry
        for entry in ordered
    ]


def superfluous(entries: Sequence[Entry], limit: int) -> list[Entry]:
    """Return all entries except the newest `limit`, oldest first."""
    ordered = sorted(entries, key=lambda entry: entry.number)
    return ordered[: max(len(ordered) - limit, 0)]


def describe_author(entry: Entry) -> str:
    """Return who rolled out: the user and machine, and the cluster's user."""
    return (entry.who or "an unknown user") + (f" as {entry.account}" if entry.account else "")


def write_time(time: dt.datetime) -> str:
    """Format a time of any zone in UTC, as Kubernetes does."""
    return time.astimezone(dt.timezone.utc).strftime(_TIME)


def _is_applying(entry: Entry, now: str) -> bool:
    """Return whether an entry is being applied, and began less than BOUND seconds before or after now.

    A machine's clock can be hours ahead: its rollout must not block others for hours.
    """
    try:
        since, until = (dt.datetime.strptime(time, _TIME) for time in (entry.since, now))  # noqa: DTZ007
    except ValueError:
        return False
    return entry.outcome == Outcome.APPLYING and abs((until - since).total_seconds()) <= BOUND


def last_ready(entries: Sequence[Entry], failed: Entry) -> Entry | None:
    """Return the newest entry that became Ready with all requests and has its bundle.

    Its release, or the target's overlay, is not that of the `failed` entry.
    """
    ready = (one for one in entries if one.outcome == Outcome.READY and one.percent == 100 and one.bundle)
    others = (one for one in ready if _identity(one) != _identity(failed))
    return max(others, key=lambda entry: entry.number, default=None)


def _identity(entry: Entry) -> tuple[str, str]:
    return entry.release, entry.bundle.overlay if entry.bundle else ""
