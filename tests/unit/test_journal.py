"""The entries of a history, and who may begin the next one."""

from __future__ import annotations

import datetime as dt

import msgspec
import pytest

from deployer.errors import ConflictError
from deployer.journal import (
    APPLIED,
    APPLYING,
    INTERRUPTED,
    READY,
    Entry,
    Provenance,
    describe_author,
    last_ready,
    plan_entry,
    settle,
    superfluous,
    takes_over,
    write_time,
)
from deployer.observed import Document

NOW, SOON, LATER = "2026-01-01T12:03:11Z", "2026-01-01T12:05:11Z", "2026-01-01T12:05:12Z"
A, B, C = "1.0-aaaaaaaaaaaa", "1.1-bbbbbbbbbbbb", "1.2-cccccccccccc"


def documents(release: str = A, **predictor: object) -> list[Document]:
    model = {"storageUri": f"s3://models/digits/{release}/"}
    return [
        {"kind": "Secret", "data": {"AWS_SECRET_ACCESS_KEY": "c2VjcmV0"}},
        {"kind": "ServingRuntime"},
        {
            "kind": "InferenceService",
            "metadata": {"labels": {"kdeploy.dev/release": release}},
            "spec": {"predictor": {"model": model, **predictor}},
        },
    ]


def entry(who: str = "alice@laptop", release: str = A, outcome: str = APPLYING, number: int = 1) -> Entry:
    planned = plan_entry(documents(release), Provenance(who=who), now=NOW)
    return msgspec.structs.replace(planned, outcome=outcome, number=number)


def test_it_says_what_was_applied_and_no_secret() -> None:
    provenance = Provenance(who="alice@laptop", archive="sha256:0", commit="abc-dirty")
    planned = plan_entry(documents(canaryTrafficPercent=10), provenance, now=NOW, account="admin")
    assert (planned.release, planned.percent, planned.when) == (A, 10, NOW)
    assert planned.storage_uri == f"s3://models/digits/{A}/"
    assert (planned.archive, planned.commit) == ("sha256:0", "abc-dirty")
    assert describe_author(planned) == "alice@laptop as admin"
    assert [document["kind"] for document in planned.documents] == ["ServingRuntime", "InferenceService"]
    assert b"c2VjcmV0" not in msgspec.json.encode(planned)
    assert plan_entry(documents(), provenance, now=NOW).percent == 100


class TestWhoMayBegin:
    @pytest.mark.parametrize("newest", [entry(outcome=APPLIED), entry(outcome="ImagePullBackOff")])
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
    entries = [entry(number=2), entry(number=10), entry(number=9, outcome=APPLIED)]
    assert [(e.number, e.outcome) for e in settle(entries, SOON)] == [
        (2, INTERRUPTED),
        (9, APPLIED),
        (10, APPLYING),
    ]
    assert settle(entries, LATER)[-1].outcome == INTERRUPTED
    assert settle([], NOW) == []


def test_the_oldest_are_superfluous() -> None:
    entries = [entry(number=number) for number in (10, 9, 8, 11)]
    assert [e.number for e in superfluous(entries, 2)] == [8, 9]
    assert superfluous(entries, 4) == superfluous(entries, 9) == []


def test_the_last_that_was_ready() -> None:
    canary = plan_entry(documents(C, canaryTrafficPercent=10), Provenance(who="alice@laptop"), now=NOW)
    entries = [
        entry(release=A, outcome=READY, number=1),
        msgspec.structs.replace(canary, outcome=READY, number=2),  # never had all requests
        entry(release=B, outcome=READY, number=3),
        entry(release=C, outcome="Failed", number=4),
    ]
    assert [last_ready(entries, failed) for failed in (C, B)] == [entries[2], entries[0]]
    assert last_ready(entries[:1], A) is None


def test_times_are_utc() -> None:
    east = dt.timezone(dt.timedelta(hours=2))
    assert write_time(dt.datetime(2026, 1, 1, 14, 3, 11, tzinfo=east)) == NOW
    assert describe_author(Entry()) == "somebody"
