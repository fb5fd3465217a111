"""One decision: what a rollout of a release would apply, and what there is to know of it before. Pure.

`plan`, `diff`, `render`, dry runs, `doctor` and `rollout` all begin here.
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
    """What a rollout would do; nothing of it has been done.

    `live` is the service as it is, None where there is none or where nobody looked, and `newest` the number
    of the journal's newest entry then, where the decision rests on it; `unchanged` says that the service is
    Ready with just this bundle. `changes` and `findings` are there where they were looked for.
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
    """Decide what a rollout of a release applies. Raises ConfigError for a strategy that the target lacks.

    Where nobody has `looked` at what is live, as for GitOps, the traffic is as asked for.
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
    cautions = (warning, access.caution if access else "")
    return Decision(
        release=release,
        bundle=bundle,
        traffic=traffic,
        strategy=chosen,
        capabilities=capabilities,
        live=live,
        notes=(note,) if note else (),
        warnings=tuple(one for one in cautions if one),
    )
