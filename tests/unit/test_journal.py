"""The entries of a journal, and whether the next rollout can begin."""

from __future__ import annotations

import datetime as dt

import msgspec
import pytest
from msgspec import structs

from deployer.errors import ConflictError
from deployer.journal import (
    EVENTS_MAX,
    Entry,
    JournalEvent,
    Outcome,
    Provenance,
    add_event,
    check_expected,
    describe_author,
    last_ready,
    plan_entry,
    refuse_another,
    settle,
    superfluous,
    takes_over,
    write_time,
)
from deployer.storage_access import StorageAccess
from tests.bundles import A, B, C, make_bundle, make_entry

NOW, SOON, LATER = "2026-01-01T12:03:11Z", "2026-01-01T12:05:11Z", "2026-01-01T12:05:12Z"
WHERE = "team/demo"


def entry(
    who: str = "alice@laptop",
    release: str = A,
    outcome: Outcome = Outcome.APPLYING,
    number: int = 1,
    since: str = NOW,
    **more: object,
) -> Entry:
    planned = make_entry(make_bundle(release), who=who)
    return structs.replace(planned, outcome=outcome, number=number, when=NOW, since=since, **more)


def test_an_entry_has_the_bundle_without_its_secret() -> None:
    bundle = make_bundle(A, percent=10, access=StorageAccess(data={"AWS_SECRET_ACCESS_KEY": "hunter2"}))
    provenance = Provenance(who="alice@laptop", archive="sha256:0", commit="abc-dirty")
    planned = plan_entry(bundle, provenance, stable=B, strategy="rolling")
    assert (planned.release, planned.percent, planned.stable) == (A, 10, B)
    assert (planned.strategy, planned.outcome) == ("rolling", Outcome.APPLYING)
    assert (planned.archive, planned.commit, planned.who) == ("sha256:0", "abc-dirty", "alice@laptop")
    assert planned.bundle == bundle.without_secret()
    assert b"aHVudGVyMg" not in msgspec.json.encode(planned)
    assert msgspec.json.decode(msgspec.json.encode(planned), type=Entry) == planned
    assert plan_entry(make_bundle(A), provenance).percent == 100


def test_the_newest_event_is_the_outcome() -> None:
    applied = JournalEvent(outcome=Outcome.APPLIED, at=NOW)
    failed = JournalEvent(outcome=Outcome.FAILED, at=SOON, reason="OOMKilled", who="bob@desk")
    found = add_event(add_event(entry(), applied), failed)
    assert (found.outcome, found.reason, found.since) == (Outcome.FAILED, "OOMKilled", SOON)
    assert found.events == (applied, failed)
    for _ in range(EVENTS_MAX):
        found = add_event(found, failed)
    assert found.events == (failed,) * EVENTS_MAX


class TestExpected:
    def test_the_expected_entry_is_the_newest(self) -> None:
        check_expected(None, None, WHERE)
        check_expected(entry(number=7), None, WHERE)
        check_expected(entry(number=7), 7, WHERE)
        check_expected(None, 0, WHERE)

    @pytest.mark.parametrize(
        ("newest", "told"),
        [
            (entry(number=8), f"alice@laptop rolled out release {A} in the meantime"),
            (None, "the service was deleted in the meantime"),
        ],
    )
    def test_another_entry_is_a_conflict(self, newest: Entry | None, told: str) -> None:
        with pytest.raises(ConflictError) as caught:
            check_expected(newest, 7, WHERE)
        assert (caught.value.what, caught.value.where) == (told, WHERE)
        assert "Nothing was changed" in (caught.value.hint or "")


class TestBegin:
    @pytest.mark.parametrize("outcome", [Outcome.APPLIED, Outcome.FAILED])
    def test_no_rollout_is_in_progress(self, outcome: Outcome) -> None:
        newest = entry(outcome=outcome)
        assert not takes_over(newest, entry("bob@desk", B), alive=None, now=NOW, where=WHERE)
        refuse_another(newest, alive=None, now=NOW, where=WHERE)

    @pytest.mark.parametrize("alive", [None, True])
    def test_a_conflict_names_the_author(self, alive: bool | None) -> None:
        with pytest.raises(ConflictError) as caught:
            takes_over(entry(), entry("bob@desk", B), alive=alive, now=SOON, where=WHERE)
        assert caught.value.what == f"alice@laptop has been rolling out release {A} since 12:03:11 UTC"

    def test_the_same_user_with_another_release_is_a_conflict(self) -> None:
        with pytest.raises(ConflictError):
            takes_over(entry(), entry(release=B), alive=None, now=NOW, where=WHERE)

    @pytest.mark.parametrize("alive", [None, False])
    def test_a_killed_run_is_taken_over(self, alive: bool | None) -> None:
        assert takes_over(entry(), entry(), alive=alive, now=SOON, where=WHERE)
        assert not takes_over(entry(), entry(), alive=alive, now=LATER, where=WHERE)

    def test_a_live_run_is_not_taken_over(self) -> None:
        with pytest.raises(ConflictError):
            takes_over(entry(), entry(), alive=True, now=NOW, where=WHERE)

    def test_a_dead_process_blocks_no_rollout(self) -> None:
        assert not takes_over(entry(), entry("bob@desk", B), alive=False, now=NOW, where=WHERE)

    @pytest.mark.parametrize("since", ["2026-01-01T12:01:10Z", "2026-01-01T20:00:00Z", "yesterday"])
    def test_a_run_of_more_than_two_minutes_blocks_no_rollout(self, since: str) -> None:
        other = entry("bob@desk", B)
        assert not takes_over(entry(since=since), other, alive=True, now=NOW, where=WHERE)


def test_an_older_or_expired_applying_entry_was_interrupted() -> None:
    entries = [entry(number=2), entry(number=10), entry(number=9, outcome=Outcome.APPLIED)]
    assert [(one.number, one.outcome) for one in settle(entries, SOON)] == [
        (2, Outcome.INTERRUPTED),
        (9, Outcome.APPLIED),
        (10, Outcome.APPLYING),
    ]
    assert settle(entries, LATER)[-1].outcome is Outcome.INTERRUPTED
    assert settle([], NOW) == []


def test_the_oldest_entries_are_superfluous() -> None:
    entries = [entry(number=number) for number in (10, 9, 8, 11)]
    assert [one.number for one in superfluous(entries, 2)] == [8, 9]
    assert superfluous(entries, 4) == superfluous(entries, 9) == []


def test_the_last_ready_entry_of_another_release() -> None:
    entries = [
        entry(release=A, outcome=Outcome.READY, number=1),
        entry(release=C, outcome=Outcome.READY, number=2, percent=10),  # only a canary
        entry(release=B, outcome=Outcome.READY, number=3),
        entry(release=C, outcome=Outcome.FAILED, number=4),
    ]
    assert [last_ready(entries, one) for one in (entries[3], entries[2])] == [entries[2], entries[0]]
    assert last_ready(entries[:1], entries[0]) is None
    unreadable = Entry(number=5, outcome=Outcome.READY)  # written by another version of kdeploy
    assert last_ready([*entries, unreadable], entries[3]) == entries[2]


def test_the_last_ready_entry_of_the_same_release_with_another_overlay() -> None:
    pools = [[{"spec": {"predictor": {"nodeSelector": {"pool": pool}}}}] for pool in "ab"]
    first, second = (make_bundle(A, overlays=overlays) for overlays in pools)
    entries = [
        entry(release=A, bundle=make_bundle(A), outcome=Outcome.READY, number=1),
        entry(release=A, bundle=first, outcome=Outcome.READY, number=2),
        entry(release=A, bundle=second, outcome=Outcome.FAILED, number=3),
    ]
    assert last_ready(entries, entries[2]) == entries[1]
    assert last_ready(entries, entries[1]) == entries[0]


def test_an_author_has_the_user_and_the_account() -> None:
    assert describe_author(Entry()) == "an unknown user"
    assert describe_author(entry(account="admin")) == "alice@laptop as admin"


def test_times_are_utc() -> None:
    east = dt.timezone(dt.timedelta(hours=2))
    assert write_time(dt.datetime(2026, 1, 1, 14, 3, 11, tzinfo=east)) == NOW
