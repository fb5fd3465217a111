"""What kdeploy reports for each recorded state of a real KServe: phase, message, hint and traffic."""

from __future__ import annotations

import re
from typing import Any

import pytest
from msgspec import structs

from deployer.observed import RELEASE_LABEL, Document, Observed, Phase
from deployer.targets.kserve.state.children import Children
from deployer.targets.kserve.state.readiness import ReadinessEvaluator
from tests.recorded import FOLDER, NAMES, state

READY, FAILED, WAITS, STOPPED = Phase.READY, Phase.FAILED, Phase.PROGRESSING, Phase.STOPPED

# state: phase, seconds until it counts, part of the message, part of the hint, (percent, release, foreign)…
EXPECTED: dict[str, tuple[Any, ...]] = {
    "01-fresh-before-any-pod": (WAITS, 0, "waiting for Kubernetes to create the release's pods", ""),
    "02-fresh-pod-pending": (WAITS, 0, "waiting for a node", ""),
    "03-pod-ready-no-gateway-answer": (WAITS, 0, "waiting for the gateway to accept the route: Parent", ""),
    "04-ready": (READY, 0, "", "", (100, "1.0-7abcde0a114e", False)),
    "05-update-in-progress": (WAITS, 0, "waiting for Kubernetes", "", (100, "1.0-7abcde0a114e", False)),
    "06-update-storage-initializer-failed-old-serves": (
        *(FAILED, 0, "StorageInitializerFailed: the storage-initializer could not download the model: "),
        "Check the model store",
    ),
    "07-update-done": (READY, 0, "", "", (100, "1.2-289e825bafe6", False)),
    "08-stopped": (STOPPED, 0, "Stopped", ""),
    "09-canary-standard": (READY, 0, "", "", (100, "1.3-83c1f967385c", False)),
    "10-canary-promoted-by-predictor-name": (READY, 0, "", "", (100, "1.3-83c1f967385c", False)),
    "11-podsecurity-restricted": (
        FAILED,
        0,
        'FailedCreate: Deployment digits-predictor: pods "',
        "Fix the cause",
    ),
    "12-quota": (FAILED, 0, "QuotaExceeded: Deployment digits-predictor: pods", "Raise the quota"),
    "13-real-node-ready": (READY, 0, "", "", (100, "1.0-c088c3f143da", False)),
    "14-update-handler-fails-at-load": (WAITS, 0, "loading the model", "", (100, "1.2-abb9855c7fbe", False)),
    "15-progress-deadline-old-still-serves": (
        *(FAILED, 0, 'ProgressDeadlineExceeded: Deployment digits-predictor: ReplicaSet "digits-predictor-7'),
        "",
    ),
    "16-rollback-after-deadline": (READY, 0, "", "", (100, "1.3-83c1f967385c", False)),
    "17-fixed-after-quota": (WAITS, 0, "waiting for Kubernetes to create the release's pods", ""),
    "18-update-image-pull": (
        *(
            FAILED,
            35,
            "ErrImagePull: cannot pull the image of container kserve-container of pod digits-predictor-cc65",
        ),
        *("Set `serving.image`", (100, "1.2-abb9855c7fbe", False)),
    ),
    "19-update-command-not-in-image": (
        *(
            FAILED,
            0,
            'RunContainerError: container kserve-container .*"torchserve": executable file not found',
        ),
        *("", (100, "1.2-abb9855c7fbe", False)),
    ),
    "20-update-oom": (
        *(
            FAILED,
            0,
            "OOMKilled: container kserve-container of pod .* exceeded its memory limit of 150Mi",
        ),
        *("Raise `serving.memory`", (100, "1.2-abb9855c7fbe", False)),
    ),
    "21-update-unschedulable": (
        *(WAITS, 0, "no node has room for pod digits-predictor-645ddffcb6-cbp6z: .*Insufficient cpu.*"),
        *("", (100, "1.2-abb9855c7fbe", False)),
    ),
    "22-store-out-of-reach": (
        *(
            WAITS,
            0,
            'downloading the model, attempt 2; the last one failed: Could not connect to the endpoint URL: "',
        ),
        *("", (100, "1.2-abb9855c7fbe", False)),
    ),
    "23-first-release-handler-fails": (WAITS, 0, "loading the model", ""),
    "24-requirements-cannot-be-installed": (WAITS, 0, "loading the model", ""),
    "25-claim-ready": (READY, 0, "", "", (100, "1.2-37c371817750", False)),
    "26-knative-ready": (READY, 0, "", "", (100, "1.0-7abcde0a114e", False)),
    "27-knative-canary-10": (
        *(READY, 0, "", "", (10, "1.1-acbc6d6ed1a1", False), (90, "1.0-7abcde0a114e", False)),
    ),
    "28-knative-update-failed": (
        *(FAILED, 0, "ProgressDeadlineExceeded: Revision digits-predictor-00003: Initial scale was never"),
        *("", (100, "1.1-acbc6d6ed1a1", False)),
    ),
    "29-head-canary-10": (
        *(READY, 0, "", "", (90, "1.3-83c1f967385c", False), (10, "1.3-83c1f967385c", True)),
    ),
    "30-head-canary-promoted": (READY, 0, "", "", (100, "1.3-83c1f967385c", False)),
    "31-gateway-refuses-the-route": (
        *(
            FAILED,
            1,
            "NotAllowedByListeners: the gateway rejects the service's route: Predictor namespace two",
        ),
        *("Allow the namespace", (100, "1.3-b9758e9dfd82", False)),
    ),
    "32-min-replicas-0-standard": (WAITS, 0, "waiting for Kubernetes to create the release's pods", ""),
    "33-runtime-not-found": (
        FAILED,
        0,
        "RuntimeNotRecognized: KServe reports an invalid specification: Wait",
        "",
    ),
    "34-one-gpu-update": (
        *(
            FAILED,
            1,
            "Unschedulable: no node has a free nvidia.com/gpu for pod digits-predictor-5d9d6f977c-k7s9x",
        ),
        *("Stop it first with `kdeploy rollout --strategy recreate`", (100, "1.0-5a9b067aa966", False)),
    ),
    "35-recreate-old-pod-killed": (WAITS, 0, "loading the model", ""),
    "36-ingress-objects-ready": (WAITS, 0, "waiting for KServe to write the Deployment", ""),
}


def revision(number: int, release: str, **condition: str) -> Document:
    name = f"digits-predictor-{number:05}"
    conditions = [{"type": "Ready", "status": "False", **condition}] if condition else []
    labels = {RELEASE_LABEL: release, "component": "predictor"}
    return {
        "kind": "Revision",
        "metadata": {"name": name, "labels": labels},
        "status": {"conditions": conditions},
    }


# Invented: objects that were not recorded.
LATE = {"reason": "ProgressDeadlineExceeded", "message": "Initial scale was never achieved"}
INVENTED: dict[str, dict[str, list[Document]]] = {
    "27-knative-canary-10": {"revisions": [revision(1, "1.0-7abcde0a114e"), revision(2, "1.1-acbc6d6ed1a1")]},
    "28-knative-update-failed": {
        "revisions": [revision(2, "1.1-acbc6d6ed1a1"), revision(3, "1.2-289e825bafe6", **LATE)]
    },
    "31-gateway-refuses-the-route": {
        "replica_sets": [
            {
                "kind": "ReplicaSet",
                "metadata": {
                    "name": "other-predictor-d8bfb9788",
                    "labels": {RELEASE_LABEL: "1.3-b9758e9dfd82", "app": "isvc.other-predictor"},
                },
                "spec": {"replicas": 1},
                "status": {"replicas": 1, "availableReplicas": 1},
            }
        ]
    },
}


def evaluate(name: str, *, at: float = 0.0) -> Observed:
    """Evaluate a state that has lasted for `at` seconds."""
    service, children = state(name)
    children = structs.replace(children, **INVENTED.get(name, {}))
    readiness = ReadinessEvaluator(window=0)
    status = readiness.evaluate(service, children, 0)
    return readiness.evaluate(service, children, at) if at else status


@pytest.mark.parametrize("name", NAMES)
def test_state(name: str) -> None:
    phase, seconds, sentence, hint, *traffic = EXPECTED[name]
    status = evaluate(name, at=seconds)
    assert status.phase is phase
    shown = f"{status.reason}: {status.message}" if phase is not WAITS else status.message
    assert re.search(sentence, shown), shown
    assert hint in status.hint
    assert bool(hint) <= bool(status.hint)
    if phase is not FAILED or traffic:
        assert [(share.percent, share.release, share.foreign) for share in status.traffic] == traffic
    if seconds:
        assert evaluate(name, at=seconds - 0.5).phase is WAITS


def test_every_state_has_an_expectation_and_a_row_in_the_readme() -> None:
    assert sorted(EXPECTED) == NAMES
    table = (FOLDER.parent / "README.md").read_text()
    assert re.findall(r"^\| (\d\d-[-\w]+) \|", table, re.MULTILINE) == NAMES
    for name in set(re.findall(r"\btest_\w+", table)):
        assert list(FOLDER.parents[1].rglob(f"{name}.py")), name


def test_a_failed_download_is_reported_once_and_without_log_prefixes() -> None:
    message = evaluate("22-store-out-of-reach").message
    assert "INFO" not in message
    assert "storage.initializer" not in message
    assert message.count("Could not connect") == 1


def test_a_failure_of_the_previous_release_does_not_count() -> None:
    """The Deployment has the new release's label immediately, and still the old conditions."""
    service, children = state("15-progress-deadline-old-still-serves")
    back = "1.3-83c1f967385c"
    service["metadata"]["labels"][RELEASE_LABEL] = back
    (deployment,) = children.deployments
    deployment["metadata"]["labels"][RELEASE_LABEL] = back
    deployment["metadata"]["generation"] += 1
    status = ReadinessEvaluator(window=0).evaluate(service, children, 0)
    assert status.phase is WAITS


def test_a_killed_old_pod_does_not_fail_the_new_one() -> None:
    """For a moment KServe reports BlockedByFailedLoad for the pod that it has just stopped."""
    service, children = state("35-recreate-old-pod-killed")
    service["status"]["modelStatus"]["transitionStatus"] = "BlockedByFailedLoad"
    assert ReadinessEvaluator(window=0).evaluate(service, children, 0).phase is WAITS


def test_traffic_after_a_deadline() -> None:
    service, children = state("15-progress-deadline-old-still-serves")
    old = {**children.deployments[0]["metadata"]["labels"], RELEASE_LABEL: "1.3-83c1f967385c"}
    sets: list[Document] = [
        {
            "kind": "ReplicaSet",
            "metadata": {"name": "old", "labels": old},
            "spec": {},
            "status": {"replicas": 1, "availableReplicas": 1},
        }
    ]
    status = ReadinessEvaluator(window=0).evaluate(service, structs.replace(children, replica_sets=sets), 0)
    assert status.phase is FAILED
    assert status.serving == "1.3-83c1f967385c"


def test_a_stopped_service_has_no_children() -> None:
    service, _ = state("08-stopped")
    assert ReadinessEvaluator(window=0).evaluate(service, Children(), 0).phase is STOPPED
