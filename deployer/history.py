"""What was applied to a target: an entry per rollout, and whether another one may begin. Pure.

An entry says for ever what was applied, by whom and from where; only its outcome changes. It is `applying`
while documents are written, `applied` when all are, and then how the wait for the release ended.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from msgspec import structs

from deployer.errors import ConflictError
from deployer.target import RELEASE_LABEL, Document, Entry, Provenance

APPLYING, APPLIED = "applying", "applied"
READY, TIMED_OUT, REPLACED = "Ready", "TimedOut", "Replaced"
INTERRUPTED = "Interrupted"  # it ended before all of its documents were applied

BOUND = 120.0  # seconds after which a rollout that says it is applying is taken for dead
_TIME = "%Y-%m-%dT%H:%M:%SZ"  # as Kubernetes writes it


def plan_entry(
    documents: Sequence[Document],
    provenance: Provenance,
    *,
    now: str,
    account: str = "",
    stable: str | None = None,
) -> Entry:
    """Describe a rollout that is about to begin; the target gives it its number.

    `stable` is the release that gets the rest of the requests. A Secret among the documents is left out:
    nothing of it is ever kept.
    """
    service = next(document for document in documents if document["kind"] == "InferenceService")
    predictor = service["spec"]["predictor"]
    return Entry(
        release=service["metadata"].get("labels", {}).get(RELEASE_LABEL, ""),
        archive=provenance.archive,
        storage_uri=predictor["model"]["storageUri"],
        percent=predictor.get("canaryTrafficPercent", 100),
        stable=stable,
        who=provenance.who,
        account=account,
        commit=provenance.commit,
        when=now,
        documents=tuple(document for document in documents if document["kind"] != "Secret"),
        outcome=APPLYING,
        since=now,
    )


def takes_over(newest: Entry, planned: Entry, *, alive: bool | None, now: str, where: str) -> bool:
    """Return whether a rollout goes on with the newest entry; False where it begins one of its own.

    `alive` says whether the process that wrote that entry still runs; None where it cannot be known.
    Raises ConflictError where somebody else is just rolling out.
    """
    if newest.outcome != APPLYING or _age(newest, now) > BOUND:
        return False
    if not alive and (newest.who, newest.documents) == (planned.who, planned.documents):
        return True
    refuse_another(newest, alive=alive, now=now, where=where)
    return False


def refuse_another(newest: Entry, *, alive: bool | None, now: str, where: str) -> None:
    """Raise ConflictError where somebody is just rolling out; `alive` as above."""
    if newest.outcome != APPLYING or _age(newest, now) > BOUND or alive is False:
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
        structs.replace(entry, outcome=INTERRUPTED)
        if entry.outcome == APPLYING and (entry is not ordered[-1] or _age(entry, now) > BOUND)
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
    """Return the newest entry of another release that became Ready with all requests, or None."""
    ready = [one for one in entries if one.outcome == READY and one.release != release and one.percent == 100]
    return max(ready, key=lambda entry: entry.number, default=None)
