"""The journal on a cluster; of two rollouts at the same time, one wins and nothing is mixed."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployer.config import KServeTarget
from deployer.errors import ConflictError, KdeployError, TargetError
from deployer.journal import JournalEvent, Outcome, Provenance
from deployer.observed import Document, Reference
from deployer.patience import Clock, Patience
from deployer.targets.kserve import Cluster
from deployer.targets.kserve.state.kinds import SERVING_RUNTIME
from tests.clocks import patience
from tests.cluster.calls import note, outcomes, roll, watch_rollout
from tests.cluster.kube import Kube
from tests.cluster.play import RUNTIME, A, B, Play, documents
from tests.cluster.proxy import Proxy
from tests.cluster.rolling import whole

ALICE, BOB = Provenance(who="alice@laptop"), Provenance(who="bob@desk")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def digits(namespace: str) -> Reference:
    return Reference(namespace, "digits")


def stored(kube: Kube, namespace: str) -> list[Document]:
    found = kube.get(f"/apis/apps/v1/namespaces/{namespace}/controllerrevisions")["items"]
    return sorted(found, key=lambda one: one["revision"])


def releases(kube: Kube, namespace: str, name: str = "digits") -> set[str]:
    """Return the releases of a service's objects: more than one if releases are mixed."""
    core = f"/api/v1/namespaces/{namespace}"
    account = kube.get(f"{core}/serviceaccounts/{name}-model-store")
    secret = kube.get(f"{core}/secrets/{name}-model-store")
    service = Play(kube, namespace, name).service()
    uri = service["spec"]["predictor"]["model"]["storageUri"]
    return {
        account["metadata"]["annotations"]["example.org/release"],
        base64.b64decode(secret["data"]["AWS_ACCESS_KEY_ID"]).decode(),
        service["metadata"]["labels"]["kdeploy.dev/release"],
        uri.rstrip("/").rpartition("/")[2],
    }


def made(kube: Kube, namespace: str) -> set[str]:
    """Return the names of the Secrets and ServiceAccounts in a namespace."""
    core = f"/api/v1/namespaces/{namespace}"
    kinds = ("secrets", "serviceaccounts")
    return {one["metadata"]["name"] for kind in kinds for one in kube.get(f"{core}/{kind}")["items"]}


def until(test: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not test():
        assert time.monotonic() < end
        time.sleep(0.05)


class Slow(Clock):
    """A clock whose times the test sets."""

    def __init__(self, times: Iterator[float]) -> None:
        self.times = times

    def now(self) -> float:
        return next(self.times)


def move_to_another_machine(kube: Kube, namespace: str) -> None:
    """Change the entries to runs of another machine."""
    for one in stored(kube, namespace):
        path = f"/apis/apps/v1/namespaces/{namespace}/controllerrevisions/{one['metadata']['name']}"
        kube.merge(path, {"metadata": {"annotations": {"kdeploy.dev/run": "another-machine 1 abc"}}})


class TestEntries:
    def test_an_entry_has_the_documents_the_author_and_the_outcome(
        self, cluster: Cluster, kube: Kube, namespace: str, digits: Reference
    ) -> None:
        sent = whole(namespace, A)
        # JSON encoders write these characters differently.
        env = [{"name": "A", "value": "ü <&> \\ \u2028 \b \ud7ff"}]
        sent.service["spec"]["predictor"]["model"]["env"] = env
        provenance = Provenance(who="alice@laptop", archive="sha256:0", commit="abc-dirty")
        roll(cluster, sent, provenance)
        (entry,) = cluster.journal.entries(digits)
        assert (entry.number, entry.release, entry.percent, entry.outcome) == (1, A, 100, Outcome.APPLIED)
        assert (entry.who, entry.account, entry.commit) == ("alice@laptop", "test", "abc-dirty")
        assert (entry.archive, entry.bundle and entry.bundle.storage_uri) == (
            "sha256:0",
            f"s3://models/digits/{A}/",
        )
        assert entry.bundle == sent.without_secret()
        note(cluster, digits, Outcome.READY)
        roll(cluster, whole(namespace, B), provenance)
        assert [(one.number, one.release, one.outcome) for one in cluster.journal.entries(digits)] == [
            (1, A, Outcome.READY),
            (2, B, Outcome.APPLIED),
        ]
        uid = Play(kube, namespace).service()["metadata"]["uid"]
        for one in stored(kube, namespace):
            assert [owner["uid"] for owner in one["metadata"]["ownerReferences"]] == [uid]
            assert base64.b64encode(A.encode()).decode() not in str(one)  # as in the Secret

    def test_the_oldest_entries_are_deleted(
        self, kubeconfig: Path, namespace: str, digits: Reference
    ) -> None:
        config = KServeTarget(kubeconfig=str(kubeconfig), history_limit=2)
        with Cluster(config) as cluster:
            for release in (A, B, A, B):
                roll(cluster, documents(namespace, release))
            assert [one.number for one in cluster.journal.entries(digits)] == [3, 4]

    def test_an_unreadable_entry_does_not_block_a_rollout(
        self, cluster: Cluster, kube: Kube, namespace: str, digits: Reference
    ) -> None:
        roll(cluster, documents(namespace))
        (one,) = stored(kube, namespace)
        metadata = {"name": "digits-kdeploy-7", "labels": one["metadata"]["labels"]}
        path = f"/apis/apps/v1/namespaces/{namespace}/controllerrevisions"
        kube.create(path, {"metadata": metadata, "revision": 7, "data": {"of": "another version"}})
        roll(cluster, documents(namespace, B))
        assert [(e.number, e.release) for e in cluster.journal.entries(digits)] == [(1, A), (7, ""), (8, B)]

    def test_services_have_separate_entries(self, cluster: Cluster, namespace: str) -> None:
        for name in ("digits", "digits-kdeploy"):
            roll(cluster, documents(namespace, name=name))
        assert len(cluster.journal.entries(Reference(namespace, "digits"))) == 1

    def test_a_preview_creates_no_entry(self, cluster: Cluster, namespace: str, digits: Reference) -> None:
        cluster.services.preview(documents(namespace))
        assert cluster.journal.entries(digits) == []


@pytest.fixture
def killed(kubeconfig: Path, proxy: Proxy, namespace: str) -> Callable[[str], None]:
    """Apply release A as Alice, and die before or after a write without a journal event."""

    def die(seconds: float) -> None:
        raise KeyboardInterrupt

    def die_before(write: str) -> None:
        dying = Cluster(KServeTarget(kubeconfig=str(kubeconfig)), patience=patience(die))
        with dying, proxy.fault(write, status=503, times=99) as fault, pytest.raises(KeyboardInterrupt):
            roll(dying, whole(namespace, A), ALICE)
        assert fault.seen

    return die_before


GAPS = [
    "PATCH .*/secrets.*force",
    "PATCH .*/serviceaccounts.*force",
    "PATCH .*/servingruntimes.*force",
    "PATCH .*/inferenceservices",
    "PATCH .*/controllerrevisions",
    "PATCH .*/servingruntimes.*fieldManager=kdeploy$",
    "PATCH .*/serviceaccounts.*fieldManager=kdeploy$",
    "PATCH .*/secrets.*fieldManager=kdeploy$",
]


class TestKilled:
    @pytest.mark.parametrize("write", GAPS)
    def test_the_same_rollout_run_again_continues(
        self,
        cluster: Cluster,
        kube: Kube,
        namespace: str,
        digits: Reference,
        killed: Callable[[str], None],
        write: str,
    ) -> None:
        killed(write)
        roll(cluster, whole(namespace, A), ALICE)
        self.check_all_applied(kube, namespace, A)
        done = GAPS.index(write) > GAPS.index("PATCH .*/controllerrevisions")  # the journal says Applied
        assert outcomes(cluster, digits) == (
            [Outcome.APPLIED, Outcome.APPLIED] if done else [Outcome.APPLIED]
        )

    @pytest.mark.parametrize("write", [GAPS[1], GAPS[4]])
    def test_another_user_of_this_machine_does_not_wait_for_a_killed_run(
        self,
        cluster: Cluster,
        kube: Kube,
        namespace: str,
        digits: Reference,
        killed: Callable[[str], None],
        write: str,
    ) -> None:
        killed(write)
        roll(cluster, whole(namespace, B), BOB)
        self.check_all_applied(kube, namespace, B)
        assert outcomes(cluster, digits) == [Outcome.INTERRUPTED, Outcome.APPLIED]

    def test_another_machine_waits_two_minutes_for_a_killed_run(
        self,
        cluster: Cluster,
        kube: Kube,
        namespace: str,
        killed: Callable[[str], None],
        proxy: Proxy,
    ) -> None:
        killed(GAPS[3])
        move_to_another_machine(kube, namespace)
        proxy.requests.clear()
        with pytest.raises(
            ConflictError, match=f"alice@laptop as test has been rolling out release {A} since"
        ):
            roll(cluster, whole(namespace, B), BOB)
        assert proxy.writes() == []
        (one,) = stored(kube, namespace)
        (event,) = json.loads(one["metadata"]["annotations"]["kdeploy.dev/events"])
        events = json.dumps([{**event, "at": "2026-01-01T00:00:00Z"}])
        long_ago = {"metadata": {"annotations": {"kdeploy.dev/events": events}}}
        path = f"/apis/apps/v1/namespaces/{namespace}/controllerrevisions"
        kube.merge(f"{path}/{one['metadata']['name']}", long_ago)
        roll(cluster, whole(namespace, B), BOB)
        self.check_all_applied(kube, namespace, B)

    def test_delete_removes_the_remains_of_a_killed_first_rollout(
        self, cluster: Cluster, kube: Kube, namespace: str, digits: Reference, killed: Callable[[str], None]
    ) -> None:
        killed("PATCH .*/inferenceservices")
        assert len(stored(kube, namespace)) == 1
        assert cluster.services.delete(digits) is None
        assert stored(kube, namespace) == []
        if kube.collects_garbage:
            until(lambda: not {"digits-model-store"} & made(kube, namespace))
        # Other services can use it.
        assert kube.get(SERVING_RUNTIME.path(namespace, RUNTIME))

    def test_delete_keeps_objects_of_others(
        self, cluster: Cluster, kube: Kube, namespace: str, digits: Reference, killed: Callable[[str], None]
    ) -> None:
        killed("PATCH .*/inferenceservices")
        core = f"/api/v1/namespaces/{namespace}"
        kube.merge(f"{core}/secrets/digits-model-store", {"metadata": {"labels": None}})
        theirs = {"apiVersion": "v1", "kind": "Namespace", "name": namespace}
        theirs["uid"] = kube.get(core)["metadata"]["uid"]
        account = f"{core}/serviceaccounts/digits-model-store"
        kube.merge(account, {"metadata": {"ownerReferences": [theirs]}})
        cluster.services.delete(digits)
        assert "ownerReferences" not in kube.get(f"{core}/secrets/digits-model-store")["metadata"]
        assert kube.get(account)["metadata"]["ownerReferences"] == [theirs]

    def test_a_service_is_not_deleted_during_a_rollout(
        self,
        cluster: Cluster,
        digits: Reference,
        killed: Callable[[str], None],
        proxy: Proxy,
        kube: Kube,
        namespace: str,
    ) -> None:
        killed(GAPS[3])
        move_to_another_machine(kube, namespace)
        proxy.requests.clear()
        with pytest.raises(
            ConflictError, match=f"alice@laptop as test has been rolling out release {A} since"
        ):
            cluster.services.delete(digits)
        assert proxy.writes() == []

    def test_a_refused_rollout_blocks_no_other(
        self,
        cluster: Cluster,
        namespace: str,
        digits: Reference,
        proxy: Proxy,
        kube: Kube,
    ) -> None:
        with proxy.fault("PATCH .*/inferenceservices", status=422), pytest.raises(KdeployError):
            roll(cluster, whole(namespace, A), ALICE)
        assert outcomes(cluster, digits) == [Outcome.INTERRUPTED]
        move_to_another_machine(kube, namespace)
        roll(cluster, whole(namespace, B), BOB)

    def test_a_slow_rollout_stops_before_others_can_begin(
        self, kubeconfig: Path, kube: Kube, namespace: str, proxy: Proxy
    ) -> None:
        slow_clock = Patience(clock=Slow(iter([0.0, 1.0, 59.0, 61.0])))
        with (
            Cluster(KServeTarget(kubeconfig=str(kubeconfig)), patience=slow_clock) as slow,
            pytest.raises(TargetError, match="more than 60 s"),
        ):
            roll(slow, whole(namespace, A), ALICE)
        assert not [path for method, path in proxy.writes() if "servingruntimes" in path]

    @staticmethod
    def check_all_applied(kube: Kube, namespace: str, release: str) -> None:
        assert releases(kube, namespace) == {release}
        uid = Play(kube, namespace).service()["metadata"]["uid"]
        core = f"/api/v1/namespaces/{namespace}"
        paths = [f"{core}/{kind}/digits-model-store" for kind in ("secrets", "serviceaccounts")]
        paths.append(SERVING_RUNTIME.path(namespace, RUNTIME))
        for one in [*map(kube.get, paths), *stored(kube, namespace)]:
            assert [owner["uid"] for owner in one["metadata"]["ownerReferences"]] == [uid]


class TestDeletedAndRolledOutAgain:
    """The cluster collects the objects of a deleted service late, when the next service can own them."""

    def test_immediately_after_the_deletion(
        self, cluster: Cluster, kube: Kube, namespace: str, digits: Reference
    ) -> None:
        if not kube.collects_garbage:
            pytest.skip("kube-controller-manager not found; bash tests/cluster/build-kube.sh builds it")
        account = f"/api/v1/namespaces/{namespace}/serviceaccounts/digits-model-store"
        for release in (A, B):
            roll(cluster, whole(namespace, release), ALICE)
            old = kube.get(account)["metadata"]["uid"]
            before = {one["metadata"]["uid"] for one in stored(kube, namespace)}
            assert cluster.services.delete(digits) is not None
            roll(cluster, whole(namespace, B), ALICE)
            until(lambda gone=before: not gone & {one["metadata"]["uid"] for one in stored(kube, namespace)})
            TestKilled.check_all_applied(kube, namespace, B)
            assert kube.get(account)["metadata"]["uid"] != old
            assert cluster.services.delete(digits) is not None

    def test_an_object_collected_during_the_rollout_is_applied_again(
        self, cluster: Cluster, kube: Kube, namespace: str, proxy: Proxy
    ) -> None:
        core = f"/api/v1/namespaces/{namespace}"
        with proxy.fault("PATCH .*/inferenceservices", before=1.0) as held, ThreadPoolExecutor(1) as pool:
            applied = pool.submit(roll, cluster, whole(namespace, A), ALICE)
            until(lambda: bool(held.seen))
            for kind in ("secrets", "serviceaccounts"):
                kube.delete(f"{core}/{kind}/digits-model-store")
            applied.result()
        TestKilled.check_all_applied(kube, namespace, A)

    def test_a_rollout_waits_for_a_finalizer_before_it_writes(
        self,
        cluster: Cluster,
        kube: Kube,
        namespace: str,
        digits: Reference,
        proxy: Proxy,
        kubeconfig: Path,
    ) -> None:
        roll(cluster, documents(namespace, A), ALICE)
        play = Play(kube, namespace)
        play.replica_set(A, available=1)
        play.ready()
        live = cluster.services.get(digits)
        assert live
        assert cluster.services.serves(documents(namespace, A), live)
        kube.merge(play._service, {"metadata": {"finalizers": ["inferenceservice.finalizers"]}})
        old = play.service()["metadata"]["uid"]
        assert cluster.services.delete(digits) is not None
        ending = cluster.services.get(digits)
        assert ending
        assert not cluster.services.serves(documents(namespace, A), ending)
        proxy.requests.clear()
        hasty = Cluster(KServeTarget(kubeconfig=str(kubeconfig)), patience=Patience(gone=0.0))
        with hasty, pytest.raises(ConflictError, match=r"finalizers are inferenceservice\.finalizers"):
            roll(hasty, documents(namespace, A), ALICE)
        assert proxy.writes() == []
        with ThreadPoolExecutor(1) as pool:
            proxy.requests.clear()
            applied = pool.submit(roll, cluster, documents(namespace, A), ALICE)
            until(lambda: len(proxy.requests) > 2)
            assert proxy.writes() == []
            kube.merge(play._service, {"metadata": {"finalizers": None}})
            applied.result()
        assert play.service()["metadata"]["uid"] != old


class Rolling:
    """A process that applies releases on request."""

    def __init__(self, kubeconfig: Path, namespace: str, who: str) -> None:
        command = [sys.executable, "-m", "tests.cluster.rolling", str(kubeconfig), namespace, who]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload]

    def read(self) -> str:
        return self.process.stdout.readline().strip()

    def start(self, name: str, release: str) -> None:
        self.process.stdin.write(f"{name} {release}\n")
        self.process.stdin.flush()


@pytest.fixture
def two(kubeconfig: Path, namespace: str) -> Iterator[tuple[Rolling, Rolling]]:
    started = [Rolling(kubeconfig, namespace, who) for who in ("alice@laptop", "bob@desk")]
    try:
        assert [one.read() for one in started] == ["ready", "ready"]
        yield started[0], started[1]
    finally:
        for one in started:
            one.process.send_signal(signal.SIGKILL)
            one.process.communicate()


class TestConcurrentRollouts:
    def test_one_of_two_rollouts_wins_or_they_follow_each_other(
        self, two: tuple[Rolling, Rolling], cluster: Cluster, kube: Kube, namespace: str, proxy: Proxy
    ) -> None:
        alice, bob = two
        ended: list[list[str]] = []
        for number in range(14):
            name = "digits" if number % 2 else f"fresh-{number}"
            slow = number >= 12  # in these rounds the rollouts certainly overlap
            with proxy.fault("PATCH .*/inferenceservices", before=3.0, times=int(slow)):
                alice.start(name, A)
                bob.start(name, B)
                ended.append([alice.read(), bob.read()])
            assert len(releases(kube, namespace, name)) == 1, ended
            newest = cluster.journal.entries(Reference(namespace, name))[-1]
            assert releases(kube, namespace, name) == {newest.release}
            assert newest.outcome == Outcome.APPLIED
        lost = [line for lines in ended for line in lines if line != "applied"]
        assert len(lost) >= 2, "the two never rolled out at the same time"
        for line in lost:
            assert line.startswith("ConflictError: ")
            assert f"alice@laptop as test has been rolling out release {A}" in line or (
                f"bob@desk as test has been rolling out release {B}" in line
            )
        assert all("applied" in lines for lines in ended)

    def test_a_killed_rollout_on_this_machine_does_not_block_the_next(
        self, two: tuple[Rolling, Rolling], kube: Kube, namespace: str, proxy: Proxy, digits: Reference
    ) -> None:
        alice, bob = two
        with proxy.fault("PATCH .*/inferenceservices", before=3.0) as held:
            alice.start("digits", A)
            while not held.seen:
                time.sleep(0.01)
            bob.start("digits", B)
            assert f"alice@laptop as test has been rolling out release {A}" in bob.read()
            alice.process.send_signal(signal.SIGKILL)
            alice.process.wait()
            bob.start("digits", B)
            assert bob.read() == "applied"
        TestKilled.check_all_applied(kube, namespace, B)


def test_a_replaced_rollout_names_the_author(
    cluster: Cluster, kube: Kube, namespace: str, digits: Reference
) -> None:
    roll(cluster, documents(namespace, A), ALICE)
    watching = watch_rollout(cluster, digits, A, 20)
    next(watching)
    roll(cluster, documents(namespace, B), BOB)
    with pytest.raises(ConflictError, match=f"bob@desk as test applied release {B} at .* UTC while {A} was"):
        list(watching)


def test_an_entry_is_created_once_if_the_answer_is_lost(
    cluster: Cluster, namespace: str, digits: Reference, proxy: Proxy
) -> None:
    with proxy.fault("POST .*controllerrevisions", lost=True):
        roll(cluster, documents(namespace))
    assert [(one.number, one.outcome) for one in cluster.journal.entries(digits)] == [(1, Outcome.APPLIED)]


class TestExpected:
    def test_a_rollout_in_between_is_a_conflict_and_nothing_is_written(
        self, cluster: Cluster, namespace: str, digits: Reference, proxy: Proxy
    ) -> None:
        with pytest.raises(ConflictError):
            roll(cluster, documents(namespace, A), ALICE, expect=1)
        roll(cluster, documents(namespace, A), ALICE, expect=0)
        proxy.requests.clear()
        with pytest.raises(ConflictError, match=f"alice@laptop as test rolled out release {A}"):
            roll(cluster, documents(namespace, B), BOB, expect=0)
        assert proxy.writes() == []
        roll(cluster, documents(namespace, B), BOB, expect=1)
        assert [one.number for one in cluster.journal.entries(digits)] == [1, 2]

    def test_one_of_two_rollouts_that_expect_the_same_entry_wins(
        self, cluster: Cluster, namespace: str, digits: Reference
    ) -> None:
        roll(cluster, documents(namespace, A), ALICE)
        with ThreadPoolExecutor(2) as pool:
            both = [
                pool.submit(roll, cluster, documents(namespace, release), ALICE, expect=1)
                for release in (A, B)
            ]
        errors = [one.exception() for one in both]
        assert len([one for one in errors if isinstance(one, ConflictError)]) == 1
        assert errors.count(None) == 1
        assert [one.number for one in cluster.journal.entries(digits)] == [1, 2]

    @pytest.mark.parametrize("expect", [0, 1], ids=["decided before", "decided again"])
    def test_a_killed_rollout_is_resumed(
        self,
        cluster: Cluster,
        kube: Kube,
        namespace: str,
        digits: Reference,
        killed: Callable[[str], None],
        expect: int,
    ) -> None:
        killed(GAPS[3])
        with pytest.raises(ConflictError):
            roll(cluster, whole(namespace, A), ALICE, expect=2)
        roll(cluster, whole(namespace, A), ALICE, expect=expect)
        assert [one.number for one in cluster.journal.entries(digits)] == [1]
        TestKilled.check_all_applied(kube, namespace, A)


def test_events_of_several_processes_are_all_kept(
    cluster: Cluster, straight: Path, namespace: str, digits: Reference
) -> None:
    roll(cluster, documents(namespace), ALICE)
    config = KServeTarget(kubeconfig=str(straight))
    with Cluster(config) as one, Cluster(config) as two, ThreadPoolExecutor(4) as pool:
        for number in range(6):
            event = JournalEvent(outcome=Outcome.APPLIED, reason=f"step {number}", who="bob@desk")
            pool.submit((one, two)[number % 2].journal.note, digits, 1, event)
    (entry,) = cluster.journal.entries(digits)
    assert {event.reason for event in entry.events if event.who == "bob@desk"} == {
        f"step {number}" for number in range(6)
    }
    assert all(event.at for event in entry.events)
    cluster.journal.note(digits, 7, JournalEvent(outcome=Outcome.READY))  # there is no entry 7
