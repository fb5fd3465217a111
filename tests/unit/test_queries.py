"""Reading a service, its journal and its drift from a target in memory."""

from __future__ import annotations

import pytest
from msgspec import structs

from deployer.errors import NotFoundError, TargetError
from deployer.journal import Entry, JournalEvent, Outcome
from deployer.observed import Document, Live, Reference
from deployer.queries import find_drift, inspect, read_history, read_journal
from deployer.targets.memory import MemoryTarget
from tests.bundles import DEMO, A, B, make_bundle, make_entry
from tests.clocks import FakeClock


def memory_with(release: str, *, percent: int = 100, lag: int = 0) -> MemoryTarget:
    memory = MemoryTarget(clock=FakeClock(), lag=lag)
    bundle = make_bundle(release, percent=percent)
    memory.apply(bundle, make_entry(bundle))
    return memory


def test_a_missing_service_is_an_error() -> None:
    with pytest.raises(NotFoundError, match="service default/demo not found") as caught:
        inspect(MemoryTarget(clock=FakeClock()).target, DEMO)
    assert "kdeploy rollout" in (caught.value.hint or "")
    assert caught.value.where == "memory"


def test_the_history_of_a_missing_service_is_an_error() -> None:
    with pytest.raises(NotFoundError, match="service default/demo not found"):
        read_history(MemoryTarget(clock=FakeClock()).target, DEMO)


def test_a_service_that_others_made_has_an_empty_history() -> None:
    memory = memory_with(A)
    assert len(read_history(memory.target, DEMO)) == 1
    memory.served[DEMO].entries.clear()
    assert read_history(memory.target, DEMO) == []


class TestJournal:
    @pytest.mark.parametrize("outcome", [Outcome.APPLIED, Outcome.TIMED_OUT, Outcome.FAILED])
    def test_a_release_that_became_ready_later_is_noted_as_ready(self, outcome: Outcome) -> None:
        memory = memory_with(A)
        memory.note(DEMO, 1, JournalEvent(outcome=outcome))
        (entry,) = read_journal(memory.target, inspect(memory.target, DEMO))
        assert entry.outcome is Outcome.READY

    def test_a_release_that_is_not_ready_is_not_noted_as_ready(self) -> None:
        memory = memory_with(A, lag=9)
        (entry,) = read_journal(memory.target, inspect(memory.target, DEMO))
        assert entry.outcome is Outcome.APPLIED

    @pytest.mark.parametrize("outcome", [Outcome.READY, Outcome.APPLYING])
    def test_a_ready_or_applying_entry_does_not_change(self, outcome: Outcome) -> None:
        memory = memory_with(A)
        memory.note(DEMO, 1, JournalEvent(outcome=outcome))
        before = memory.entries(DEMO)
        assert read_journal(memory.target, inspect(memory.target, DEMO)) == before

    def test_the_status_of_another_release_or_percentage_changes_no_entry(self) -> None:
        memory = memory_with(A)
        live = inspect(memory.target, DEMO)
        for bundle in (make_bundle(A, percent=10), make_bundle(B)):
            memory.apply(bundle, make_entry(bundle))
            assert read_journal(memory.target, live)[-1].outcome is Outcome.APPLIED

    def test_only_the_newest_entry_changes(self) -> None:
        memory = memory_with(A)
        bundle = make_bundle(A)
        memory.apply(bundle, make_entry(bundle))
        entries = read_journal(memory.target, inspect(memory.target, DEMO))
        assert [entry.outcome for entry in entries] == [Outcome.APPLIED, Outcome.READY]

    def test_a_read_only_journal_is_read_unchanged(self) -> None:
        class Full(MemoryTarget):
            def note(self, reference: Reference, number: int, event: JournalEvent) -> None:
                raise TargetError("the disk is full")

        memory = memory_with(A)
        full = Full(clock=FakeClock())
        full.served = memory.served
        (entry,) = read_journal(full.target, inspect(full.target, DEMO))
        assert entry.outcome is Outcome.APPLIED


class TestDrift:
    def changed(self) -> Live:
        """A live service whose replicas were set by kubectl."""
        memory = memory_with(A)
        live = inspect(memory.target, DEMO)
        document: Document = {
            **live.document,
            "metadata": {
                **live.document["metadata"],
                "managedFields": [
                    {
                        "manager": "kubectl",
                        "operation": "Update",
                        "time": "2026-01-01T12:03:11Z",
                        "fieldsV1": {"f:spec": {"f:predictor": {"f:minReplicas": {}}}},
                    }
                ],
            },
        }
        return structs.replace(live, document=document)

    def entry(self, outcome: Outcome, release: str = A) -> Entry:
        return structs.replace(make_entry(make_bundle(release)), outcome=outcome)

    def test_drift_names_the_field_and_the_manager(self) -> None:
        (drift,) = find_drift(self.changed(), [self.entry(Outcome.READY)])
        assert (drift.field, drift.manager) == ("spec.predictor.minReplicas", "kubectl")

    @pytest.mark.parametrize("outcome", [Outcome.APPLYING, Outcome.INTERRUPTED])
    def test_an_incomplete_entry_is_not_compared(self, outcome: Outcome) -> None:
        assert find_drift(self.changed(), [self.entry(outcome)]) == []
        assert len(find_drift(self.changed(), [self.entry(Outcome.READY), self.entry(outcome, B)])) == 1

    def test_without_a_journal_there_is_no_drift(self) -> None:
        assert find_drift(self.changed(), []) == []
        assert find_drift(self.changed(), [structs.replace(self.entry(Outcome.READY), bundle=None)]) == []
