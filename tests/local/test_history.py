"""The journal of the local target. It is in the state folder, and readable without a supervisor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from deployer.diff import compare
from deployer.errors import ConflictError
from deployer.journal import JournalEvent, Outcome, Provenance, plan_entry
from deployer.observed import Phase, Reference
from deployer.targets.local import OneNode, target
from deployer.targets.local.connection import NotRunningError, call
from deployer.targets.local.state import State
from tests.local.client import Client
from tests.local.releases import make_bundle

DEMO = Reference("default", "demo")
A, B = "1.0-aaaaaaaaaaaa", "1.0-bbbbbbbbbbbb"
READY = JournalEvent(outcome=Outcome.READY, who="alice@laptop")


@pytest.mark.torchserve
def test_two_rollouts_have_entries_and_previews(client: Client, store: Path) -> None:
    services, journal = client.target.services, client.target.journal
    first, second = (make_bundle("demo", release, store / release[-1]) for release in (A, B))
    assert journal.entries(DEMO) == []
    assert [live for live, _ in services.preview(first)] == [None, None]
    provenance = Provenance(who="alice@laptop", archive="sha256:0", commit="abc")
    assert services.apply(first, plan_entry(first, provenance)) == 1
    journal.note(DEMO, 1, READY)
    journal.note(Reference("default", "other"), 1, READY)  # a service that does not exist
    planned = plan_entry(second, Provenance(who="bob@desk"), stable=A, strategy="rolling")
    assert services.apply(second, structs.replace(planned, parent=1)) == 2
    assert [compare(*pair) for pair in services.preview(second)] == [None, None]
    changed = [found for pair in services.preview(first) if (found := compare(*pair))]
    assert "spec.predictor.model.storageUri" in [change.path for change in changed[0].changes]
    assert client.node.stop()
    entries = journal.entries(DEMO)
    assert [(e.number, e.release, e.who, e.outcome) for e in entries] == [
        (1, A, "alice@laptop", Outcome.READY),
        (2, B, "bob@desk", Outcome.APPLIED),
    ]
    assert entries[0].bundle == first
    assert (entries[1].stable, entries[1].strategy, entries[1].parent) == (A, "rolling", 1)
    assert services.delete(DEMO) == ()
    assert journal.entries(DEMO) == []
    journal.note(DEMO, 2, READY)


@pytest.mark.torchserve
def test_another_process_adds_and_reads_events(client: Client, store: Path) -> None:
    number = client.apply(make_bundle("demo", A, store / "a"), who="alice@laptop")
    assert client.wait(DEMO).phase is Phase.READY

    def another() -> OneNode:
        return OneNode(state=client.state, namespace="default", ingress_host="127.0.0.1", ingress_port=0)

    failed = JournalEvent(outcome=Outcome.FAILED, reason="ModelLoadFailed", who="bob@desk", at="a time")
    another().target.journal.note(DEMO, number, failed)
    client.target.journal.note(DEMO, number, READY)
    client.target.journal.note(DEMO, number + 1, READY)  # an entry that does not exist
    kept = client.target.journal.entries(DEMO)
    [entry] = kept
    events = [(one.outcome, one.reason, one.who) for one in entry.events]
    assert events == [
        (Outcome.APPLIED, "", "alice@laptop"),
        (Outcome.FAILED, "ModelLoadFailed", "bob@desk"),
        (Outcome.READY, "", "alice@laptop"),
    ]
    assert all(one.at >= entry.when for one in entry.events)  # the target sets the time
    assert "a time" not in {one.at for one in entry.events}
    assert (entry.outcome, entry.reason, entry.since) == (Outcome.READY, "", entry.events[-1].at)
    assert another().target.journal.entries(DEMO) == kept
    pid = client.node.info().pid
    assert client.node.stop()
    assert another().target.journal.entries(DEMO) == kept
    client.node.start()
    assert client.node.info().pid != pid
    assert another().target.journal.entries(DEMO) == kept


@pytest.mark.torchserve
def test_applying_with_an_outdated_entry_number_changes_nothing(client: Client, store: Path) -> None:
    bundle, other = make_bundle("versus", A, store / "a"), make_bundle("versus", B, store / "b")
    reference = bundle.reference
    with pytest.raises(ConflictError, match="the service was deleted in the meantime"):
        client.apply(bundle, expect=1)
    assert client.target.services.get(reference) is None
    assert client.apply(bundle, "alice@laptop", expect=0) == 1
    for stale in (0, 2):
        with pytest.raises(ConflictError) as caught:
            client.apply(other, "bob@desk", expect=stale)
        assert f"alice@laptop rolled out release {A} in the meantime" in caught.value.what
        assert caught.value.where == str(reference)
    assert client.live(reference).status.wanted == A
    assert [entry.release for entry in client.target.journal.entries(reference)] == [A]
    assert client.apply(other, "bob@desk", expect=1) == 2
    assert client.apply(other, "bob@desk") == 3
    assert client.target.services.delete(reference) == ()


def test_a_lost_response_does_not_create_a_second_entry(
    client: Client, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle("lost", A, store / "a")
    lost = [True]

    def call_and_lose(state: State, method: str, url: str, body: object = None) -> Any:
        answer = call(state, method, url, body)
        if (method, url) == ("PUT", "/services") and lost:
            lost.clear()
            raise NotRunningError("the supervisor ended")
        return answer

    monkeypatch.setattr(target, "call", call_and_lose)
    assert client.apply(bundle, "alice@laptop", expect=0) == 1
    assert [entry.number for entry in client.target.journal.entries(bundle.reference)] == [1]
    assert client.target.services.delete(bundle.reference) == ()
