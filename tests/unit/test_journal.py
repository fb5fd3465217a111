"""The entries of a journal, their events, and who may begin the next one."""

from __future__ import annotations

import datetime as dt

import msgspec
import pytest

from deployer.bundle import Bundle, Sealed
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
    settle,
    superfluous,
    takes_over,
    write_time,
)

NOW, SOON, LATER = "2026-01-01T12:03:11Z", "2026-01-01T12:05:11Z", "2026-01-01T12:05:12Z"
A, B, C = "1.0-aaaaaaaaaaaa", "1.1-bbbbbbbbbbbb", "1.2-cccccccccccc"


def bundle(release: str = A, **predictor: object) -> Bundle:
    model = {"storageUri": f"s3://models/digits/{release}/"}
    return Bundle(
        secret=Sealed({"kind": "Secret", "data": {"AWS_SECRET_ACCESS_KEY": "c2VjcmV0"}}),
        runtime={"kind": "ServingRuntime"},
        service={
            "kind": "InferenceService",
            "metadata": {"labels": {"kdeploy.dev/release": release}},
            "spec": {"predictor": {"model": model, **predictor}},
        },
    )


def entry(
    who: str = "alice@laptop", release: str = A, outcome: Outcome = Outcome.APPLYING, number: int = 1
) -> Entry:
    planned = plan_entry(bundle(release), Provenance(who=who))
    return msgspec.structs.replace(planned, outcome=outcome, number=number, since=NOW)


def test_it_says_what_was_applied_and_no_secret() -> None:
    provenance = Provenance(who="alice@laptop", archive="sha256:0", commit="abc-dirty")
    planned = plan_entry(bundle(canaryTrafficPercent=10), provenance, stable=B, strategy="recreate", parent=3)
    assert (planned.release, planned.percent, planned.outcome) == (A, 10, Outcome.APPLYING)
    assert (planned.stable, planned.strategy, planned.parent) == (B, "recreate", 3)
    assert planned.bundle
    assert planned.bundle.storage_uri == f"s3://models/digits/{A}/"
    assert (planned.archive, planned.commit) == ("sha256:0", "abc-dirty")
    assert describe_author(msgspec.structs.replace(planned, account="admin")) == "alice@laptop as admin"
    assert [document["kind"] for document in planned.bundle.documents] == [
        "ServingRuntime",
        "InferenceService",
    ]
    assert b"c2VjcmV0" not in msgspec.json.encode(planned)
    assert plan_entry(bundle(), provenance).percent == 100


def test_events_say_how_far_it_is_and_the_newest_are_kept() -> None:
    ready = JournalEvent(outcome=Outcome.READY, at=SOON, who="bob@desk")
    failed = JournalEvent(outcome=Outcome.FAILED, at=LATER, reason="ModelLoadFailed")
    noted = add_event(add_event(entry(), ready), failed)
    assert noted.events == (ready, failed)
    assert (noted.outcome, noted.reason, noted.since) == (Outcome.FAILED, "ModelLoadFailed", LATER)
    assert msgspec.json.decode(msgspec.json.encode(noted), type=Entry) == noted
    for _ in range(EVENTS_MAX):
        noted = add_event(noted, ready)
    assert noted.events == (ready,) * EVENTS_MAX


def test_who_decided_on_another_entry_is_refused() -> None:
    check_expected(None, None, "n/digits")
    check_expected(None, 0, "n/digits")
    check_expected(entry(number=7), 7, "n/digits")
    check_expected(entry(number=7), None, "n/digits")
    with pytest.raises(ConflictError, match=f"alice@laptop rolled out release {A} in the meantime"):
        check_expected(entry(number=7), 6, "n/digits")
    with pytest.raises(ConflictError, match="it was deleted in the meantime"):
        check_expected(None, 7, "n/digits")


class TestWhoMayBegin:
    @pytest.mark.parametrize("newest", [entry(outcome=Outcome.APPLIED), entry(outcome=Outcome.FAILED)])
    def test_where_nobody_applies(self, newest: Entry) -> None:
        assert not takes_over(newest, entry("bob@desk", B), alive=None, now=NOW, where="n/digits")

    @pytest.mark.parametrize("alive", [None, True])
    def test_somebody_else_is_named(self, alive: bool | None) -> None:
        with pytest.raises(ConflictError) as caught:
            takes_over(entry(), entry("bob@desk", B), alive=alive, now=SOON, where="n/digits")
        assert caught.value.what == f"alice@laptop is rolling out release {A} since 12:03:11 UTC"

    def test_the_same_user_with_another_release_waits_too(self) -> None:
        with pytest.raises(ConflictError):
            takes_over(entry(), entry(release=B), alive=None, now=NOW, where="n/digits")

    @pytest.mark.parametrize("alive", [None, False])
    def test_a_run_that_was_killed_goes_on(self, alive: bool | None) -> None:
        assert takes_over(entry(), entry(), alive=alive, now=SOON, where="n/digits")
        assert not takes_over(entry(), entry(), alive=alive, now=LATER, where="n/digits")

    def test_a_run_that_is_seen_alive_does_not(self) -> None:
        with pytest.raises(ConflictError):
            takes_over(entry(), entry(), alive=True, now=NOW, where="n/digits")

    def test_a_dead_process_holds_up_nobody(self) -> None:
        assert not takes_over(entry(), entry("bob@desk", B), alive=False, now=NOW, where="n/digits")

    def test_two_minutes_without_an_end_are_dead(self) -> None:
        assert not takes_over(entry(), entry("bob@desk", B), alive=True, now=LATER, where="n/digits")
        assert not takes_over(
            msgspec.structs.replace(entry(), since="2026-01-01T20:00:00Z"),
            entry("bob@desk", B),
            alive=None,
            now=NOW,
            where="n/digits",
        )
        since_when = msgspec.structs.replace(entry(), since="yesterday")
        assert not takes_over(since_when, entry("bob@desk", B), alive=None, now=NOW, where="n/digits")


def test_what_cannot_be_applying_any_more_was_interrupted() -> None:
    entries = [entry(number=2), entry(number=10), entry(number=9, outcome=Outcome.APPLIED)]
    assert [(e.number, e.outcome) for e in settle(entries, SOON)] == [
        (2, Outcome.INTERRUPTED),
        (9, Outcome.APPLIED),
        (10, Outcome.APPLYING),
    ]
    assert settle(entries, LATER)[-1].outcome is Outcome.INTERRUPTED
    assert settle([], NOW) == []


def test_the_oldest_are_superfluous() -> None:
    entries = [entry(number=number) for number in (10, 9, 8, 11)]
    assert [e.number for e in superfluous(entries, 2)] == [8, 9]
    assert superfluous(entries, 4) == superfluous(entries, 9) == []


def test_the_last_that_was_ready() -> None:
    canary = plan_entry(bundle(C, canaryTrafficPercent=10), Provenance(who="alice@laptop"))
    entries = [
        entry(release=A, outcome=Outcome.READY, number=1),
        msgspec.structs.replace(canary, outcome=Outcome.READY, number=2),  # never had all requests
        entry(release=B, outcome=Outcome.READY, number=3),
        entry(release=C, outcome=Outcome.FAILED, number=4),
    ]
    assert [last_ready(entries, failed) for failed in (C, B)] == [entries[2], entries[0]]
    assert last_ready(entries[:1], A) is None


def test_times_are_utc() -> None:
    east = dt.timezone(dt.timedelta(hours=2))
    assert write_time(dt.datetime(2026, 1, 1, 14, 3, 11, tzinfo=east)) == NOW
    assert describe_author(Entry()) == "somebody"
