"""The rollout of one release: what traffic and strategy it gets, and the wait for it with its three ends.

The release is ready, it has failed, or the time is over. Nothing here knows which kind of target it is.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

from deployer.errors import ConfigError, ConflictError, KdeployError, RolloutFailedError, RolloutTimeoutError
from deployer.history import REPLACED, TIMED_OUT, describe_author
from deployer.release import Traffic
from deployer.target import Document, Entry, Live, Phase, Reference, Status, Target


def decide_traffic(percent: int, release_id: str, live: Live | None) -> tuple[Traffic, str]:
    """Return the traffic of a rollout with `--canary percent`, and a note where it is not as asked for.

    A canary needs a release beside it: a first release, and one that is fully rolled out, get all requests.
    """
    if percent >= 100:
        return Traffic(), ""
    status = live.status if live else None
    if status is None or (status.stable is None and status.serving is None):
        return Traffic(), f"{release_id} is the first release: it gets all requests, not {percent} %"
    stable = status.stable or status.serving
    if stable == release_id:
        return Traffic(), f"{release_id} is rolled out already: it keeps all requests"
    return Traffic(percent, stable), ""


def decide_recreate(
    strategy: str | None, release_id: str, live: Live | None, *, standard: bool
) -> tuple[bool, str]:
    """Return whether old pods are stopped before new ones are started, and a note that says so.

    Without a `strategy` they are where no release of a live service answers requests: pods of another release
    that never became ready would keep the room that the new ones need. Raises ConfigError where only Standard
    mode can do it.
    """
    if strategy == "recreate" and not standard:
        raise ConfigError(
            "--strategy recreate needs a cluster in Standard mode: elsewhere the old revision answers until "
            "the new one is ready",
            where="--strategy",
            hint="leave it out, or run `kdeploy delete` first",
        )
    if strategy == "recreate":
        return True, "the service does not answer from the end of its old pods until the new ones are ready"
    old = [one for one in live.status.running if one != release_id] if live else []
    if strategy is None and standard and live and live.status.serving is None and old:
        return True, f"no release answers requests, so the pods of {old[0]} are stopped first"
    return False, ""


def recreating(documents: Sequence[Document]) -> list[Document]:
    """Return documents whose service stops its old pods before new ones are started."""
    made = copy.deepcopy(list(documents))
    for document in made:
        if document["kind"] == "InferenceService":
            document["spec"]["predictor"]["deploymentStrategy"] = {"type": "Recreate"}
    return made


def watch_rollout(
    target: Target, reference: Reference, release_id: str, timeout: float, stable: str | None = None
) -> Iterator[Status]:
    """Yield each status of a service until `release_id` is ready, the last one being Ready.

    `timeout` is in seconds; `stable` is the release that is to get the rest of the requests. Raises
    RolloutFailedError where waiting longer cannot help, RolloutTimeoutError when the time is over,
    ConflictError when another release was applied.
    """
    last: Status | None = None
    for status in target.watch(reference, timeout, stable):
        if status != last:
            yield status
        last = status
        if status.release != release_id:
            raise ConflictError(
                f"{_by_whom(target, status)} while {release_id} was being rolled out",
                where=str(reference),
                hint="`kdeploy status` shows what is live; run `kdeploy rollout` again to replace it",
            )
        if status.phase is Phase.READY:
            return
        if status.phase is Phase.FAILED:
            raise _failed(status, release_id)
    raise RolloutTimeoutError(
        f"timed out after {timeout:g} s waiting for release {release_id}{_because(last)}{_stays(last)}",
        where=str(reference),
        hint=f"{release_id} stays applied and takes over when it is ready: `kdeploy status` shows it"
        + _way_back(last),
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
    log = "".join(f"\n  | {line}" for line in status.log)
    next_step = status.hint or "fix the cause, then run `kdeploy rollout` again"
    then = "is not started again before that" if status.given_up else "takes over if it becomes ready"
    return RolloutFailedError(
        f"release {release_id} cannot become ready{_because(status).rstrip('.')}{_stays(status)}{log}",
        where=str(status.reference),
        hint=f"{next_step}. {release_id} stays applied and {then}{_way_back(status)}",
    )


def _other(status: Status | None) -> str | None:
    """Return the release that answers requests instead of the wanted one."""
    shares = status.traffic if status else ()
    return next((s.release for s in shares if status and s.percent and s.release != status.release), None)


def _stays(status: Status | None) -> str:
    other = _other(status)
    return f"; {other} still answers requests" if other else ""


def _way_back(status: Status | None) -> str:
    other = _other(status)
    return f". To go back: `kdeploy rollout --release {other}`" if other else ""


def _because(status: Status | None) -> str:
    if status and status.phase is Phase.PROGRESSING and status.message:
        return f": {status.message}"
    words = [word for word in (status.reason, status.message) if word] if status else []
    return ": " + ": ".join(words) if words else ""
