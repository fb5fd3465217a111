"""Reads a service: its state, its journal, and the changes that others made."""

from __future__ import annotations

from collections.abc import Sequence

from deployer.journal import Entry, Outcome
from deployer.managed_fields import Drift, compare_with_applied
from deployer.observed import Live, Reference
from deployer.rollouts import correct_outcome
from deployer.targets.protocols import Target, not_found


def inspect(target: Target, reference: Reference) -> Live:
    """Return a live service, with the reason if it is not ready. Raises NotFoundError."""
    live = target.services.inspect(reference)
    if live is None:
        raise not_found(reference, target.services.place)
    return live


def read_journal(target: Target, live: Live) -> list[Entry]:
    """Return the journal of a live service; if its release became Ready later, the newest entry says so."""
    correct_outcome(target, live.status)
    return target.journal.entries(live.status.reference)


def read_history(target: Target, reference: Reference) -> list[Entry]:
    """Return the journal of a service, which can outlive it. Raises NotFoundError if there is neither."""
    entries = target.journal.entries(reference)
    if not entries and target.services.get(reference) is None:
        raise not_found(reference, target.services.place)
    return entries


def find_drift(live: Live, entries: Sequence[Entry]) -> list[Drift]:
    """Return what others changed in a live service since its last rollout was applied."""
    unfinished = (Outcome.APPLYING, Outcome.INTERRUPTED)
    applied = [entry.bundle for entry in entries if entry.outcome not in unfinished]
    return compare_with_applied(live.document, applied[-1].service) if applied and applied[-1] else []
