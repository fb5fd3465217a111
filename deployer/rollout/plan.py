"""What a rollout does: the decision before it, its strategy, and its release's traffic. Pure."""

from __future__ import annotations

import enum

from msgspec import Struct

from deployer.bundle import Bundle
from deployer.diff import Diff
from deployer.errors import ConfigError
from deployer.findings import Finding
from deployer.journal import Entry
from deployer.observed import Capabilities, Live, Observed
from deployer.release import Release, Traffic


class Strategy(enum.Enum):
    """How pods are replaced: new pods start first, or old pods stop first."""

    ROLLING = "rolling"
    RECREATE = "recreate"


class Decision(Struct, frozen=True, kw_only=True):
    """What a rollout would do. Nothing of it has been done.

    `live` is the live service, or None if there is none or it was not read. `newest` is the number of the
    newest journal entry if the decision depends on it. `unchanged` means that the service is Ready with this
    bundle. `changes` and `findings` are empty unless the call requested them.
    """

    release: Release
    bundle: Bundle
    traffic: Traffic
    strategy: Strategy
    capabilities: Capabilities
    live: Live | None
    newest: int | None
    unchanged: bool
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    findings: tuple[Finding, ...]
    changes: tuple[Diff, ...]


class Plan(Struct, frozen=True, kw_only=True):
    """A rollout of one bundle, with all traffic or as a canary.

    `entry` is its journal entry, with the wanted traffic. With a `timeout`, in seconds, the rollout waits
    until the release is ready. With `rollback`, a release that does not become ready is replaced by the last
    one that was. `standard` is whether the target replaces pods as KServe does in Standard mode. `expect` is
    the number of the newest journal entry if the decision depends on it.
    """

    bundle: Bundle
    entry: Entry
    timeout: float | None = None
    rollback: bool = False
    standard: bool = False
    expect: int | None = None


def decide_traffic(percent: int, release_id: str, live: Live | None) -> tuple[Traffic, str]:
    """Return the traffic of a rollout with `--canary percent`, and a note if it differs from that.

    A canary needs a stable release. Without one, or if it is the stable release itself, it gets all requests.
    """
    if percent >= 100:
        return Traffic(), ""
    stable = (live.status.stable or live.status.serving) if live else None
    if stable is None:
        return Traffic(), f"{release_id} is the first release: it gets all requests, not {percent}%"
    if stable == release_id:
        return Traffic(), f"{release_id} is already rolled out: it keeps all requests"
    return Traffic(percent, stable), ""


def decide_strategy(
    requested: Strategy | None, release_id: str | None, seen: Observed | None, *, standard: bool
) -> tuple[Strategy, str]:
    """Return how pods are replaced, and a warning about the effect.

    `release_id` is the release whose pods stay; None if the target's overlay changes and all are replaced. By
    default, old pods stop first if no release of a live service answers requests: the pods of a release that
    never became ready would keep the resources that the new ones need. Raises ConfigError for RECREATE
    outside Standard mode.
    """
    if requested is Strategy.RECREATE and not standard:
        raise ConfigError(
            "--strategy recreate needs a cluster in Standard mode: any other target keeps the old revision "
            "until the new one is ready",
            where="--strategy",
            hint="Leave it out, or run `kdeploy delete` first.",
        )
    if requested is Strategy.RECREATE:
        outage = "the service is unavailable from the end of its old pods until the new ones are ready"
        return Strategy.RECREATE, outage
    others = [one for one in seen.revisions if one.pods and one.release != release_id] if seen else []
    if requested is None and standard and seen and seen.serving is None and others:
        old = others[0].release or others[0].name
        return Strategy.RECREATE, f"no release answers requests, so kdeploy stops the pods of {old} first"
    return Strategy.ROLLING, ""
