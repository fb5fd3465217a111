"""Watching a release come to serve: a fold over statuses, with three ends.

It serves, it cannot come to serve, or the time is over. Nothing here knows which target it watches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from deployer.errors import ConflictError, KdeployError, RolloutFailedError, RolloutTimeoutError
from deployer.history import REPLACED, TIMED_OUT, describe_author
from deployer.target import Entry, Phase, Reference, Status, Target


def watch_rollout(target: Target, reference: Reference, release_id: str, timeout: float) -> Iterator[Status]:
    """Yield each status of a service until `release_id` serves, the last one being Ready.

    `timeout` is in seconds. Raises RolloutFailedError for what waiting cannot heal,
    RolloutTimeoutError when the time is over, ConflictError when another release was applied.
    """
    last: Status | None = None
    for status in target.watch(reference, timeout):
        if status != last:
            yield status
        last = status
        if status.release != release_id:
            raise ConflictError(
                f"{_by_whom(target, status)} while {release_id} was being rolled out",
                where=str(reference),
                hint="`kdeploy status` shows what serves; run the rollout again if it should be this one",
            )
        if status.phase is Phase.READY:
            return
        if status.phase is Phase.FAILED:
            raise _failed(status, release_id)
    raise RolloutTimeoutError(
        f"release {release_id} does not serve after {timeout:g} s" + _because(last),
        where=str(reference),
        hint="it may still come: `kdeploy status`, `kdeploy logs`; --timeout waits longer",
    )


def read_outcome(error: KdeployError, last: Status | None) -> str | None:
    """Return how a wait that ended with an error is to be called; None where that says nothing of it."""
    if isinstance(error, RolloutFailedError):
        return (last.reason if last else "") or Phase.FAILED.value
    return {RolloutTimeoutError: TIMED_OUT, ConflictError: REPLACED}.get(type(error))


def _by_whom(target: Target, status: Status) -> str:
    """Say that another release was applied, and by whom if the history tells."""
    entries: list[Entry] = []
    with contextlib.suppress(KdeployError):
        entries = target.history(status.reference)
    if entries and entries[-1].release == status.release:
        newest = entries[-1]
        at = f"at {newest.when[11:19]} UTC"
        return f"{describe_author(newest)} applied release {status.release} {at}"
    return f"release {status.release} was applied"


def _failed(status: Status, release_id: str) -> RolloutFailedError:
    serving = next((share.release for share in status.traffic if share.percent), None)
    stays = f"; {serving} goes on serving" if serving else ""
    log = "".join(f"\n  | {line}" for line in status.log)
    return RolloutFailedError(
        f"release {release_id} cannot serve{_because(status).rstrip('.')}{stays}{log}",
        where=str(status.reference),
        hint="`kdeploy logs` shows what its containers said; mend the cause and run `kdeploy rollout` again",
    )


def _because(status: Status | None) -> str:
    words = [word for word in (status.reason, status.message) if word] if status else []
    return ": " + ": ".join(words) if words else ""
