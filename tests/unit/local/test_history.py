"""The journal in a service's record: the content and the number of its entries."""

from __future__ import annotations

from pathlib import Path

from msgspec import structs

from deployer.journal import JournalEvent, Outcome, Provenance, plan_entry
from deployer.targets.local.revisions import HISTORY, append_entry, note_event
from tests.local.releases import make_bundle, want

A, B = "1.0-aaaaaaaaaaaa", "1.0-bbbbbbbbbbbb"
NOW = "2026-01-01T00:00:00Z"
READY = JournalEvent(outcome=Outcome.READY, who="alice@laptop")


def test_the_oldest_entries_are_dropped_and_numbering_continues() -> None:
    bundle = make_bundle("demo", A, Path("/store/a"))
    record = want(None, bundle)
    for _ in range(HISTORY + 2):
        record = append_entry(record, plan_entry(bundle, Provenance()), NOW)
    assert [entry.number for entry in record.history] == list(range(3, HISTORY + 3))
    record = note_event(record, 3, READY)
    assert [entry.outcome for entry in record.history[:2]] == [Outcome.READY, Outcome.APPLIED]
    assert note_event(record, 2, READY) == record


def test_an_entry_keeps_the_plan_of_its_rollout() -> None:
    bundle = make_bundle("demo", A, Path("/store/a"), canary=10)
    planned = plan_entry(bundle, Provenance(who="alice@laptop"), stable=B)
    [entry] = append_entry(want(None, bundle), planned, NOW).history
    assert (
        structs.replace(
            planned,
            number=1,
            when=NOW,
            outcome=Outcome.APPLIED,
            since=NOW,
            events=(JournalEvent(outcome=Outcome.APPLIED, at=NOW, who="alice@laptop"),),
        )
        == entry
    )
