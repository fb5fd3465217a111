"""Decides what a rollout of a release applies. Pure.

`plan`, `diff`, `render`, dry runs, `doctor` and `rollout` all use this decision.
"""

from __future__ import annotations

from msgspec import Struct

from deployer.bundle import Bundle
from deployer.config import Scaling
from deployer.diff import Diff
from deployer.findings import Finding
from deployer.manifest import render
from deployer.observed import Capabilities, Live
from deployer.release import Release, Traffic
from deployer.rollout.plan import Strategy, decide_strategy, decide_traffic
from deployer.storage_access import StorageAccess


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
    live: Live | None = None
    newest: int | None = None
    unchanged: bool = False
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    changes: tuple[Diff, ...] = ()


def decide(
    release: Release,
    *,
    live: Live | None,
    looked: bool,
    capabilities: Capabilities,
    namespace: str,
    storage_uri: str,
    scaling: Scaling,
    access: StorageAccess | None = None,
    percent: int = 100,
    strategy: Strategy | None = None,
) -> Decision:
    """Decide what a rollout of a release applies. Raises ConfigError if the target lacks the strategy.

    If the live service was not `looked` at, as for GitOps, the traffic is the given percentage.
    """
    standard = capabilities.deployment_mode == "Standard"
    traffic, note = decide_traffic(percent, release.id, live) if looked else (Traffic(percent), "")
    seen = live.status if live else None
    chosen, warning = decide_strategy(strategy, release.id, seen, standard=standard)
    bundle = render(
        release,
        storage_uri=storage_uri,
        namespace=namespace,
        capabilities=capabilities,
        scaling=scaling,
        traffic=traffic,
        access=access,
        recreate=chosen is Strategy.RECREATE,
    )
    warnings = (warning, access.caution if access else "")
    return Decision(
        release=release,
        bundle=bundle,
        traffic=traffic,
        strategy=chosen,
        capabilities=capabilities,
        live=live,
        notes=(note,) if note else (),
        warnings=tuple(filter(None, warnings)),
    )
