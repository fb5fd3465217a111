"""The contract of `deployer.targets.protocols`, tested on every target, including the one in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from msgspec import structs

from deployer.bundle import Bundle
from deployer.config import Scaling
from deployer.errors import ConflictError, NotFoundError
from deployer.journal import JournalEvent, Outcome
from deployer.observed import Observed, Phase, Reference
from deployer.storage_access import StorageAccess
from deployer.targets.local import OneNode
from deployer.targets.protocols import Via
from tests.bundles import ALICE, A, B, C, make_entry
from tests.cluster.conftest import kube  # noqa: F401 - a fixture
from tests.cluster.kube import ADMIN, Kube
from tests.contract.targets import KServeSide, LocalSide, MemorySide, Side
from tests.local.releases import ANSWER, make_release

# The first test of a session waits until an API server is built.
pytestmark = pytest.mark.timeout(200, func_only=True)

TIMEOUT = 90.0  # seconds until a release is ready or has failed

_numbers = itertools.count(1)


def open_memory(folder: Path, request: pytest.FixtureRequest, after: ExitStack) -> Side:
    return MemorySide()


def open_local(folder: Path, request: pytest.FixtureRequest, after: ExitStack) -> Side:
    for release in ("a", "b"):
        make_release(folder / release, "demo", ANSWER.format(release=release))

    def open_node() -> OneNode:
        return OneNode(
            state=folder / ".kdeploy", namespace="default", ingress_host="127.0.0.1", ingress_port=0
        )

    after.callback(open_node().stop)
    return LocalSide(open_node, folder)


def open_kserve(folder: Path, request: pytest.FixtureRequest, after: ExitStack) -> Side:
    server: Kube = request.getfixturevalue("kube")
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(server.kubeconfig(ADMIN, namespace="default")))
    return KServeSide(server, path, after)


SIDES = {"memory": open_memory, "local": open_local, "kserve": open_kserve}
MARKS = {"local": pytest.mark.torchserve}


@pytest.fixture(scope="module", params=[pytest.param(one, marks=MARKS.get(one, ())) for one in SIDES])
def side(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    with ExitStack() as after:
        yield SIDES[request.param](tmp_path_factory.mktemp(request.param), request, after)


@pytest.fixture
def name() -> str:
    """A service name that no other test uses, for releases that fail, which start no server."""
    return f"demo-{next(_numbers)}"


@pytest.fixture(scope="module")
def first(side: Side) -> Observed:
    """The observed state of the service `served` after its first release was applied as a canary."""
    return rollout(side, side.bundle(A, "served", percent=10))


@pytest.fixture
def served(side: Side, first: Observed) -> Reference:
    """A service whose release A gets all traffic."""
    bundle = side.bundle(A, "served")
    live = side.target.services.get(first.reference)
    if live is None or not side.target.services.serves(bundle, live):
        assert rollout(side, bundle).phase is Phase.READY
    return first.reference


def rollout(side: Side, bundle: Bundle) -> Observed:
    """Apply a bundle, and wait until its release is ready or has failed.

    Check that actual traffic equals wanted traffic whenever the service is Ready.
    """
    services = side.target.services
    before = services.get(bundle.reference)
    stable = before.status.stable if before and bundle.percent < 100 else None
    wanted = split(bundle.percent, bundle.release, stable) if stable else {bundle.release: 100}
    services.apply(bundle, make_entry(bundle, stable=stable))
    live = services.get(bundle.reference)
    assert live
    assert live.status.phase is not Phase.READY or shares(live.status) == wanted
    assert live.status.phase is Phase.READY or not services.serves(bundle, live)
    side.settle(bundle)
    observed = None
    for observed in services.watch(bundle.reference, TIMEOUT, stable):
        assert observed.phase is not Phase.READY or shares(observed) == wanted
        if observed.phase in (Phase.READY, Phase.FAILED):
            return observed
    raise AssertionError(f"neither ready nor failed: {observed}")


def apply_broken(side: Side, name: str, release: str = C) -> Bundle:
    """Apply a release that cannot load."""
    bundle = side.bundle(release, name, loads=False)
    side.target.services.apply(bundle, make_entry(bundle))
    side.settle(bundle)
    return bundle


def shares(observed: Observed) -> dict[str | None, int]:
    return {share.release: share.percent for share in observed.traffic if share.percent}


def split(percent: int, candidate: str, stable: str) -> dict[str | None, int]:
    wanted: dict[str | None, int] = {candidate: percent, stable: 100 - percent}
    return {release: share for release, share in wanted.items() if share}


class TestServices:
    def test_an_applied_bundle_is_the_wanted_state(self, side: Side, name: str) -> None:
        services, bundle = side.target.services, side.bundle(C, name, loads=False)
        assert services.get(bundle.reference) is None
        assert services.inspect(bundle.reference) is None
        apply_broken(side, name)
        for live in (services.get(bundle.reference), services.inspect(bundle.reference)):
            assert live
            assert (live.status.reference, live.status.wanted) == (bundle.reference, C)
            assert live.document["spec"]["predictor"]["model"]["storageUri"] == bundle.storage_uri
            assert live.status.phase is not Phase.READY

    def test_the_first_release_gets_all_traffic_even_as_a_canary(self, first: Observed) -> None:
        assert (first.phase, first.wanted, first.percent) == (Phase.READY, A, 100)
        assert shares(first) == {A: 100}

    def test_a_release_advances_in_steps(self, side: Side, served: Reference) -> None:
        """Check all steps in one test, because servers are slow to start."""
        reach = side.target.reach
        for percent in (0, 10, 50, 0):  # the last step takes the traffic away
            observed = rollout(side, side.bundle(B, "served", percent=percent))
            assert (observed.phase, observed.reason) == (Phase.READY, "")
            assert (observed.wanted, observed.percent) == (B, percent)
            assert (observed.stable, observed.candidate) == (A, B)
            assert shares(observed) == split(percent, B, A)
            for via in (Via.INGRESS, Via.DIRECT):
                endpoints = [reach.endpoint(served, via, release=release) for release in (A, B)]
                assert endpoints[0] != endpoints[1]
        observed = rollout(side, side.bundle(B, "served"))
        assert (observed.phase, observed.stable, observed.candidate) == (Phase.READY, B, None)
        assert (observed.percent, shares(observed)) == (100, {B: 100})
        observed = rollout(side, side.bundle(A, "served"))
        assert (observed.phase, observed.stable, shares(observed)) == (Phase.READY, A, {A: 100})

    @pytest.mark.parametrize("percent", [10, 100])
    def test_a_failed_release_gets_no_traffic(self, side: Side, served: Reference, percent: int) -> None:
        observed = rollout(side, side.bundle(C, "served", loads=False, percent=percent))
        assert (observed.phase, observed.wanted) == (Phase.FAILED, C)
        assert observed.reason
        assert observed.message
        assert shares(observed) == {A: 100}

    def test_applying_a_bundle_again_changes_only_the_journal(self, side: Side, served: Reference) -> None:
        services, bundle = side.target.services, side.bundle(A, "served")
        before, entries = services.get(served), side.target.journal.entries(served)
        assert services.apply(bundle, make_entry(bundle)) == entries[-1].number + 1
        after = rollout(side, bundle)
        assert before
        assert (after.phase, after.revision) == (Phase.READY, before.status.revision)
        assert after.traffic == before.status.traffic

    def test_scaling_keeps_the_release_and_the_revision(self, side: Side, served: Reference) -> None:
        services = side.target.services
        before = services.get(served)
        bundle = side.bundle(A, "served", scaling=Scaling(min_replicas=1, max_replicas=3))
        assert before
        assert not services.serves(bundle, before)
        assert rollout(side, bundle).phase is Phase.READY
        after = services.get(served)
        assert after
        assert after.document["spec"]["predictor"]["maxReplicas"] == 3
        assert (after.status.wanted, after.status.revision) == (A, before.status.revision)
        assert [one.name for one in after.status.revisions] == [one.name for one in before.status.revisions]

    def test_serves_is_true_only_for_the_live_bundle(self, side: Side, served: Reference, name: str) -> None:
        services = side.target.services
        live = services.get(served)
        assert live
        assert services.serves(side.bundle(A, "served"), live)
        assert not services.serves(side.bundle(A, "served", percent=50), live)
        assert not services.serves(side.bundle(B, "served"), live)
        broken = services.get(apply_broken(side, name).reference)
        assert broken
        assert not services.serves(side.bundle(C, name, loads=False), broken)

    def test_applying_with_an_outdated_entry_number_changes_nothing(self, side: Side, name: str) -> None:
        services, journal = side.target.services, side.target.journal
        first, second = (side.bundle(release, name, loads=False) for release in (B, C))
        with pytest.raises(ConflictError):
            services.apply(first, make_entry(first), expect=7)
        assert services.get(first.reference) is None
        assert services.apply(first, make_entry(first), expect=0) == 1
        assert services.apply(first, make_entry(first), expect=1) == 2
        before = journal.entries(first.reference)
        for outdated in (0, 1, 3):
            with pytest.raises(ConflictError, match=rf"{ALICE}.* rolled out release {B} in the meantime"):
                services.apply(second, make_entry(second), expect=outdated)
        live = services.get(first.reference)
        assert live
        assert live.status.wanted == B
        assert journal.entries(first.reference) == before

    def test_a_preview_changes_nothing(self, side: Side, name: str) -> None:
        services, journal = side.target.services, side.target.journal
        first = side.bundle(C, name, loads=False)
        assert services.preview(first)[-1][0] is None
        assert services.get(first.reference) is None
        apply_broken(side, name)
        entries = journal.entries(first.reference)
        second = side.bundle(C, name, loads=False, scaling=Scaling(max_replicas=5))
        before, after = services.preview(second)[-1]
        assert before
        assert [one["spec"]["predictor"]["maxReplicas"] for one in (before, after)] == [1, 5]
        live = services.get(first.reference)
        assert live
        assert live.document["spec"]["predictor"]["maxReplicas"] == 1
        assert journal.entries(first.reference) == entries

    def test_a_watch_begins_with_the_current_state(self, side: Side, served: Reference) -> None:
        seen = list(side.target.services.watch(served, 1.0))
        assert (seen[0].reference, seen[0].wanted) == (served, A)
        assert (seen[-1].phase, shares(seen[-1])) == (Phase.READY, {A: 100})

    def test_a_watch_reports_the_given_stable_release(self, side: Side, served: Reference) -> None:
        seen = next(side.target.services.watch(served, 1.0, C))
        assert seen.stable == C

    def test_a_watch_ends_when_the_service_is_deleted(self, side: Side, name: str) -> None:
        services, reference = side.target.services, apply_broken(side, name).reference
        with pytest.raises(NotFoundError, match=name):
            for number, _ in enumerate(services.watch(reference, TIMEOUT)):
                if number == 0:
                    side.another().services.delete(reference)

    def test_deleting_a_service_deletes_its_journal(self, side: Side, name: str) -> None:
        services, reference = side.target.services, Reference("default", name)
        assert services.delete(reference) is None
        apply_broken(side, name)
        assert services.delete(reference) is not None
        side.collect(name)
        assert services.get(reference) is None
        assert side.target.journal.entries(reference) == []
        assert reference not in [one.reference for one in services.list_all()]
        assert services.delete(reference) is None

    def test_a_list_has_the_observed_state(self, side: Side, served: Reference, name: str) -> None:
        services, broken = side.target.services, apply_broken(side, name).reference
        for namespace in (None, services.namespace):
            found = {one.reference: one for one in services.list_all(namespace)}
            assert found.keys() >= {served, broken}
            assert (found[served].phase, found[served].wanted) == (Phase.READY, A)
            assert shares(found[served]) == {A: 100}
            assert found[broken].wanted == C
        assert services.list_all("another-namespace") == []

    def test_releases_in_use_are_those_with_traffic_wanted_or_in_a_journal(
        self, side: Side, served: Reference, name: str
    ) -> None:
        apply_broken(side, "served")
        apply_broken(side, name, B)
        apply_broken(side, name, "1.9-999999999999")
        ids = {label.rpartition("/")[2] for label in side.target.services.releases_in_use()}
        assert ids >= {A, B, C, "1.9-999999999999"}
        assert "1.8-888888888888" not in ids


class TestJournal:
    def test_an_entry_keeps_its_bundle_and_provenance_without_secrets(self, side: Side, name: str) -> None:
        access = StorageAccess(data={"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "hunter2"})
        bundle = side.bundle(C, name, loads=False, percent=10, access=access)
        assert bundle.secret
        planned = structs.replace(make_entry(bundle, stable=B, strategy="rolling"), parent=7)
        assert side.target.services.apply(bundle, planned) == 1
        (entry,) = side.target.journal.entries(bundle.reference)
        assert (entry.number, entry.release, entry.percent, entry.stable) == (1, C, 10, B)
        assert (entry.strategy, entry.parent) == ("rolling", 7)
        assert (entry.who, entry.archive, entry.commit) == (ALICE, "sha256:0", "abc")
        assert entry.outcome is Outcome.APPLIED
        assert entry.when
        assert entry.when <= entry.since
        assert entry.bundle == bundle.without_secret()
        assert "hunter2" not in str(entry)
        assert "aHVudGVyMg" not in str(entry)

    def test_entries_are_numbered_and_listed_oldest_first(self, side: Side, name: str) -> None:
        reference = Reference("default", name)
        assert side.target.journal.entries(reference) == []
        for release in (C, B, C):
            apply_broken(side, name, release)
        entries = side.target.journal.entries(reference)
        assert [(one.number, one.release) for one in entries] == [(1, C), (2, B), (3, C)]

    def test_any_process_can_add_events(self, side: Side, name: str) -> None:
        reference = apply_broken(side, name).reference
        apply_broken(side, name, B)
        journal = side.another().journal
        for outcome, reason in ((Outcome.TIMED_OUT, ""), (Outcome.FAILED, "ModelLoadFailed")):
            journal.note(reference, 1, JournalEvent(outcome=outcome, reason=reason, who="bob@desk"))
        first, second = side.target.journal.entries(reference)
        assert (first.outcome, first.reason, second.outcome) == (
            Outcome.FAILED,
            "ModelLoadFailed",
            Outcome.APPLIED,
        )
        events = [(event.outcome, event.who) for event in first.events]
        assert events[-2:] == [(Outcome.TIMED_OUT, "bob@desk"), (Outcome.FAILED, "bob@desk")]
        times = [event.at for event in first.events]
        assert all(times)
        assert times == sorted(times)
        assert (first.since, first.release) == (times[-1], C)

    def test_an_event_for_a_missing_entry_is_ignored(self, side: Side, name: str) -> None:
        event = JournalEvent(outcome=Outcome.READY)
        side.target.journal.note(Reference("default", name), 1, event)
        reference = apply_broken(side, name).reference
        side.target.journal.note(reference, 7, event)
        assert [one.outcome for one in side.target.journal.entries(reference)] == [Outcome.APPLIED]


class TestReach:
    @pytest.mark.parametrize("via", [Via.INGRESS, Via.METRICS])
    def test_a_service_has_an_endpoint(self, side: Side, served: Reference, via: Via) -> None:
        assert side.target.reach.endpoint(served, via).url

    @pytest.mark.parametrize("via", [Via.INGRESS, Via.DIRECT, Via.METRICS])
    def test_a_release_has_an_endpoint(self, side: Side, served: Reference, via: Via) -> None:
        assert side.target.reach.endpoint(served, via, release=A).url

    def test_missing_services_and_releases_are_not_found(
        self, side: Side, served: Reference, name: str
    ) -> None:
        missing, reach = Reference("default", name), side.target.reach
        with pytest.raises(NotFoundError, match=name):
            next(side.target.services.watch(missing, 1.0))
        for via in (Via.INGRESS, Via.DIRECT, Via.METRICS):
            with pytest.raises(NotFoundError, match=name):
                reach.endpoint(missing, via, release=A)
        with pytest.raises(NotFoundError, match=name):
            reach.endpoint(missing)
        with pytest.raises(NotFoundError, match=name):
            list(reach.logs(missing))
        with pytest.raises(NotFoundError, match=C):
            reach.endpoint(served, Via.DIRECT, release=C)
