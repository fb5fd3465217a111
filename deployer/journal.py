"""The journal: an entry per rollout of a service, and whether another one may begin. Pure.

What an entry says of a rollout never changes: what was applied, by whom and from where. Its events are added
to it, by any process, and the newest one says how far it is.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Sequence

from msgspec import Struct, structs

from deployer.bundle import Bundle
from deployer.errors import ConflictError

BOUND = 120.0  # seconds after which a rollout that says it is applying is taken for dead
EVENTS_MAX = 50  # events that an entry keeps, the newest
_TIME = "%Y-%m-%dT%H:%M:%SZ"  # as Kubernetes writes it


class Outcome(enum.Enum):
    """How far a rollout is, or how it ended."""

    APPLYING = "Applying"
    APPLIED = "Applied"
    READY = "Ready"
    FAILED = "Failed"
    TIMED_OUT = "TimedOut"
    REPLACED = "Replaced"
    INTERRUPTED = "Interrupted"  # it ended before all of its documents were applied


class JournalEvent(Struct, frozen=True, kw_only=True):
    """What happened to a rollout: its outcome from then on, the reason, and who noted it. `at` is UTC."""

    outcome: Outcome
    at: str = ""
    reason: str = ""
    who: str = ""


class Provenance(Struct, frozen=True, kw_only=True):
    """Where a rollout comes from: `user@machine`, the model archive's digest, the project's commit."""

    who: str = ""
    archive: str = ""
    commit: str = ""


class Entry(Struct, frozen=True, kw_only=True):
    """One rollout of a service. Times are UTC, as Kubernetes writes them.

    `percent` of the requests are for `release`, the rest for `stable`. `account` is the cluster's user.
    `parent` is the number of the entry that this one goes back to. No Secret is in the bundle.
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
    bundle: Bundle,
    provenance: Provenance,
    *,
    stable: str | None = None,
    strategy: str = "",
    parent: int | None = None,
) -> Entry:
    """Describe a rollout that is about to begin; the target gives it its number, time and account."""
    return Entry(
        release=bundle.release,
        archive=provenance.archive,
        percent=bundle.percent,
        stable=stable,
        strategy=strategy,
        parent=parent,
        who=provenance.who,
        commit=provenance.commit,
        bundle=bundle.without_secret(),
        outcome=Outcome.APPLYING,
    )


def add_event(entry: Entry, event: JournalEvent) -> Entry:
    """Return an entry with one more event; the newest ones are kept."""
    events = (*entry.events, event)[-EVENTS_MAX:]
    return structs.replace(entry, outcome=event.outcome, reason=event.reason, since=event.at, events=events)


def check_expected(newest: Entry | None, expect: int | None, where: str) -> None:
    """Raise ConflictError where the newest entry is not the one that a decision was based on."""
    if expect is not None and (newest.number if newest else 0) != expect:
        since = (
            f"{describe_author(newest)} rolled out release {newest.release}" if newest else "it was deleted"
        )
        raise ConflictError(
            f"{since} in the meantime",
            where=where,
            hint="nothing was changed; `kdeploy status` shows what is live",
        )


def takes_over(newest: Entry, planned: Entry, *, alive: bool | None, now: str, where: str) -> bool:
    """Return whether a rollout continues the newest entry; False where it begins one of its own.

    `alive` says whether the process that wrote that entry still runs; None where it cannot be known.
    Raises ConflictError where somebody else is just rolling out.
    """
    if newest.outcome != Outcome.APPLYING or _age(newest, now) > BOUND:
        return False
    if not alive and (newest.who, newest.bundle) == (planned.who, planned.bundle):
        return True
    refuse_another(newest, alive=alive, now=now, where=where)
    return False


def refuse_another(newest: Entry, *, alive: bool | None, now: str, where: str) -> None:
    """Raise ConflictError where somebody is just rolling out; `alive` as above."""
    if newest.outcome != Outcome.APPLYING or _age(newest, now) > BOUND or alive is False:
        return
    raise ConflictError(
        f"{describe_author(newest)} is rolling out release {newest.release} since {newest.since[11:19]} UTC",
        where=where,
        hint="nothing was changed; run it again when that has ended, if it is still wanted",
    )


def settle(entries: Sequence[Entry], now: str) -> list[Entry]:
    """Return the entries, oldest first, with what cannot be `applying` any more called interrupted."""
    ordered = sorted(entries, key=lambda entry: entry.number)
    return [
        structs.replace(entry, outcome=Outcome.INTERRUPTED)
        if entry.outcome == Outcome.APPLYING and (entry is not ordered[-1] or _age(entry, now) > BOUND)
        else entry
        for entry in ordered
    ]


def superfluous(entries: Sequence[Entry], limit: int) -> list[Entry]:
    """Return the oldest of the entries, all but `limit`."""
    ordered = sorted(entries, key=lambda entry: entry.number)
    return ordered[: max(len(ordered) - limit, 0)]


def describe_author(entry: Entry) -> str:
    """Say who rolled out: the user and machine, and as which of the cluster's users."""
    return (entry.who or "somebody") + (f" as {entry.account}" if entry.account else "")


def write_time(time: dt.datetime) -> str:
    """Write a time of any zone as Kubernetes does, in UTC."""
    return time.astimezone(dt.timezone.utc).strftime(_TIME)


def _age(entry: Entry, now: str) -> float:
    """Return how many seconds lie between an entry's outcome and now; a time that cannot be read is far.

    Machines' clocks differ, and one that is hours ahead must not hold up anybody for hours.
    """
    try:
        since, until = (dt.datetime.strptime(time, _TIME) for time in (entry.since, now))  # noqa: DTZ007
        return abs((until - since).total_seconds())
    except ValueError:
        return BOUND + 1


def last_ready(entries: Sequence[Entry], release: str) -> Entry | None:
    """Return the newest readable entry of another release that became Ready with all requests, or None."""
    ready = [
        one
        for one in entries
        if one.outcome == Outcome.READY and one.release != release and one.percent == 100 and one.bundle
    ]
    return max(ready, key=lambda entry: entry.number, default=None)
