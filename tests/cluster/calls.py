"""The actions of commands on a cluster, in one call each, for tests without a project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from deployer.bundle import Bundle
from deployer.errors import KdeployError
from deployer.findings import Finding, failure, refuse
from deployer.journal import Entry, JournalEvent, Outcome, Provenance, plan_entry
from deployer.observed import Observed, Reference
from deployer.rollout import engine
from deployer.rollout.plan import Plan
from deployer.targets.kserve import Cluster
from tests.cluster.play import documents


def roll(
    cluster: Cluster,
    bundle: Bundle,
    provenance: Provenance | None = None,
    *,
    stable: str | None = None,
    expect: int | None = None,
) -> Reference:
    """Apply a bundle without waiting for it to become ready."""
    entry = plan_entry(bundle, provenance or Provenance(), stable=stable)
    cluster.services.apply(bundle, entry, expect=expect)
    return bundle.reference


def warned(cluster: Cluster, bundle: Bundle, *, wait: bool = True) -> list[str]:
    """Check a bundle: raise its failures, and return its warnings."""
    return refuse(cluster.services.check(bundle, wait=wait))


def doctor(cluster: Cluster, bundle: Bundle) -> list[Finding]:
    """Return the findings of `kdeploy doctor`."""
    found = cluster.services.examine()
    if any(one.status == "failure" for one in found):
        return found
    found += cluster.services.check(bundle)
    if not any(one.status == "failure" for one in found):
        try:
            cluster.services.preview(bundle)
        except KdeployError as error:
            found.append(failure("admission", error.what, error.where or "", error.hint or ""))
    return found


def outcomes(cluster: Cluster, reference: Reference) -> list[Outcome]:
    """Return the outcomes of a service's rollouts, the oldest first."""
    return [one.outcome for one in cluster.journal.entries(reference)]


def note(cluster: Cluster, reference: Reference, outcome: Outcome, number: int = 1) -> None:
    """Add an outcome to an entry."""
    cluster.journal.note(reference, number, JournalEvent(outcome=outcome))


def watch_rollout(
    cluster: Cluster, reference: Reference, release: str, timeout: float, percent: int = 100
) -> Iterator[Observed]:
    """Yield the observed states until a release is Ready. Raises the error that its rollout would."""
    bundle = documents(reference.namespace, release, name=reference.name)
    plan = Plan(bundle=bundle, entry=Entry(release=release, percent=percent), timeout=timeout)
    state = engine.Rollout(plan=plan, stage=engine.Stage.WAITING)
    with closing(cluster.services.watch(reference, timeout)) as watched:
        while True:
            observed = next(watched, None)
            if observed:
                yield observed
            state, actions = engine.step(state, engine.Seen(observed) if observed else engine.Elapsed())
            if any(isinstance(one, engine.ReadJournal) for one in actions):
                state, _ = engine.step(state, engine.Read(cluster.journal.entries(reference)))
            if state.error:
                raise state.error
            if state.stage is engine.Stage.DONE:
                return
