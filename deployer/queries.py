"""Questions about a service: what is observed, what its journal says, what others have changed."""

from __future__ import annotations

from collections.abc import Sequence

from deployer.errors import NotFoundError
from deployer.journal import Entry, Outcome
from deployer.managed_fields import Drift, compare_with_applied
from deployer.observed import Live, Reference
from deployer.rollouts import correct_outcome
from deployer.targets.protocols import Target


def inspect(target: Target, reference: Reference) -> Live:
    """Return a live service, and why it is not ready. Raises NotFoundError."""
    live = target.services.inspect(reference)
    if live is None:
        raise NotFoundError(
            f"service {reference} not found",
            hint="`kdeploy list` shows what exists; `kdeploy rollout` creates it",
        )
    return live


def read_journal(target: Target, live: Live) -> list[Entry]:
    """Return what was rolled out to a live service; an entry whose release is Ready since is corrected."""
    correct_outcome(target, live.status)
    return target.journal.entries(live.status.reference)


def find_drift(live: Live, entries: Sequence[Entry]) -> list[Drift]:
    """Return what others have changed of a live service since the last of its rollouts was applied."""
    unfinished = (Outcome.APPLYING, Outcome.INTERRUPTED)
    applied = [entry.bundle for entry in entries if entry.outcome not in unfinished]
    return compare_with_applied(live.document, applied[-1].service) if applied and applied[-1] else []
