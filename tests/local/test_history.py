"""What the one-node target remembers of rollouts: in its state, whether it runs or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.diff import compare
from deployer.errors import NotFoundError
from deployer.journal import Provenance, plan_entry
from deployer.observed import Reference
from deployer.targets.local.revisions import (
    HISTORY,
    Record,
    append_entry,
    note_outcome,
    read_documents,
    set_desired,
)
from deployer.targets.local.service import now
from tests.local.client import Client
from tests.local.releases import make_documents

DEMO = Reference("default", "demo")
A, B = "1.0-aaaaaaaaaaaa", "1.0-bbbbbbbbbbbb"


def test_the_oldest_are_forgotten_and_numbers_go_on(store: Path) -> None:
    documents = make_documents("demo", A, store / "a")
    service, runtime = read_documents(documents, "default")
    assert runtime
    record: Record = set_desired(None, service, runtime, now())
    for _ in range(HISTORY + 2):
        record = append_entry(record, plan_entry(documents, Provenance(), now=now()))
    assert [entry.number for entry in record.history] == list(range(3, HISTORY + 3))
    record = note_outcome(record, 3, "Ready", now())
    assert [entry.outcome for entry in record.history[:2]] == ["Ready", "applied"]


@pytest.mark.torchserve
def test_what_was_applied_by_whom_and_what_would_change(client: Client, store: Path) -> None:
    node = client.node
    first, second = (make_documents("demo", release, store / release[-1]) for release in (A, B))
    assert node.history(DEMO) == []
    assert [live for live, _ in node.preview(first)] == [None, None]
    node.apply(first, Provenance(who="alice@laptop", archive="sha256:0", commit="abc"))
    node.note_outcome(DEMO, "Ready")
    node.note_outcome(Reference("default", "other"), "Ready")  # nothing of it was applied here
    node.apply(second, Provenance(who="bob@desk"))
    assert [compare(*pair) for pair in node.preview(second)] == [None, None]
    changed = [found for pair in node.preview(first) if (found := compare(*pair))]
    assert "spec.predictor.model.storageUri" in [change.path for change in changed[0].changes]
    assert node.stop()
    entries = node.history(DEMO)
    assert [(e.number, e.release, e.who, e.outcome) for e in entries] == [
        (1, A, "alice@laptop", "Ready"),
        (2, B, "bob@desk", "applied"),
    ]
    assert entries[0].documents == tuple(first)
    assert node.delete(DEMO)
    assert node.history(DEMO) == []
    with pytest.raises(NotFoundError):
        node.note_outcome(DEMO, "Ready")
