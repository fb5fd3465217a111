"""What a rollout is to do: its strategy, and the traffic that its release gets. Pure."""

from __future__ import annotations

import enum

from msgspec import Struct

from deployer.bundle import Bundle
from deployer.errors import ConfigError
from deployer.journal import Entry
from deployer.observed import Live, Observed
from deployer.release import Traffic


class Strategy(enum.Enum):
    """How pods are replaced: new ones first, or old ones stopped first."""

    ROLLING = "rolling"
    RECREATE = "recreate"


class Plan(Struct, frozen=True, kw_only=True):
    """A rollout of one bundle: all at once, or a share of the requests beside the stable release.

    `entry` is what the journal will say of it, with the traffic that is wanted. With a `timeout`, in seconds,
    it is waited for; `rollback` restores the last release that was Ready where this one does not become
    ready. `standard` says that the target replaces pods, as KServe does in Standard mode. `expect` is the
    number of the newest entry of the journal that the decision was based on, where that matters.
    """

    bundle: Bundle
    entry: Entry
    timeout: float | None = None
    rollback: bool = False
    standard: bool = False
    expect: int | None = None


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


def decide_strategy(
    asked: Strategy | None, release_id: str, seen: Observed | None, *, standard: bool
) -> tuple[Strategy, str]:
    """Return how pods are replaced, and a warning that says what that means.

    Without a strategy, old pods are stopped first where no release of a live service answers requests:
    those of a release that never became ready would keep the room that the new ones need. Raises ConfigError
    where only Standard mode can do it.
    """
    if asked is Strategy.RECREATE and not standard:
        raise ConfigError(
            "--strategy recreate needs a cluster in Standard mode: elsewhere the old revision answers until "
            "the new one is ready",
            where="--strategy",
            hint="leave it out, or run `kdeploy delete` first",
        )
    if asked is Strategy.RECREATE:
        return asked, "the service does not answer from the end of its old pods until the new ones are ready"
    others = [one for one in seen.revisions if one.pods and one.release != release_id] if seen else []
    if asked is None and standard and seen and seen.serving is None and others:
        old = others[0].release or others[0].name
        return Strategy.RECREATE, f"no release answers requests, so the pods of {old} are stopped first"
    return Strategy.ROLLING, ""
