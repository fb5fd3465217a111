"""What a rollout reports while it waits."""

from __future__ import annotations

from typing import Any

import pytest

from deployer.observed import Document
from deployer.targets.kserve.state.children import Children
from deployer.targets.kserve.state.progress import describe_progress
from tests.unit.kserve.documents import (
    AFTER,
    BEFORE,
    GPU,
    A,
    B,
    condition,
    deployment,
    event,
    pod,
    replica_set,
    revision,
    service,
)

RUNS: Document = {"running": {}}
STARTS: Document = {"waiting": {"reason": "ContainerCreating"}}
ERROR = {"exitCode": 1, "reason": "Error", "message": "timed out"}


def described(*pods: Document, of: Document | None = None, **children: Any) -> tuple[str, str]:
    return describe_progress(of or service(), Children(pods=list(pods), **children))


def probe(message: str) -> Document:
    return event("digits-1", "Unhealthy", f"Readiness probe failed: {message}")


@pytest.mark.parametrize(
    ("one", "events", "reason", "message"),
    [
        (pod(node=""), [], "Scheduling", "waiting for a node"),
        (pod(node=""), [event("digits-1", "FailedScheduling", GPU)], "Unschedulable", f"digits-1: {GPU}"),
        (
            pod(node=""),
            [event("digits-1", "FailedScheduling", GPU), event("digits-1", "TriggeredScaleUp", "0->1")],
            "ScalingUp",
            "waiting for a node that the autoscaler adds",
        ),
        (pod(init=RUNS), [], "DownloadingModel", "downloading the model"),
        (
            pod(init={**RUNS, "restarts": 1, "last": ERROR}),
            [],
            "DownloadingModel",
            "downloading the model, attempt 2; the last one failed: timed out",
        ),
        (
            pod(init={"terminated": ERROR}),
            [],
            "BackOff",
            "storage-initializer has failed once and starts again after 10 s: timed out",
        ),
        (
            pod(init={"terminated": ERROR, "restarts": 2}),
            [],
            "BackOff",
            "storage-initializer has failed 3 times and starts again after 40 s: timed out",
        ),
        (
            pod(
                init={"terminated": {"exitCode": 0}, "restarts": 1}, main=RUNS
            ),  # the second attempt succeeded
            [],
            "LoadingModel",
            "loading the model",
        ),
        (pod(main=RUNS), [], "LoadingModel", "loading the model"),
        (pod(main=RUNS), [probe("it is slow")], "LoadingModel", "loading the model: it is slow"),
        (
            pod(main=RUNS),
            [probe("model digits has no READY worker")],
            "LoadingModel",
            "loading the model: no READY worker yet",
        ),
        (
            pod(main=RUNS),
            [probe("model digits has no READY worker; pip: No matching distribution")],
            "LoadingModel",
            "loading the model: no READY worker yet; pip: No matching distribution",
        ),
        (
            pod(main=RUNS),
            [probe("installing the model's requirements")],
            "InstallingRequirements",
            "installing the model's requirements",
        ),
        (
            pod(main=RUNS),
            [probe("TorchServe's management API does not answer: refused")],
            "StartingTorchServe",
            "TorchServe is starting",
        ),
        (
            pod(main={**RUNS, "restarts": 1, "last": ERROR}),
            [],
            "Restarted",
            "loading the model again after the container failed: Error: timed out",
        ),
        (
            pod(main={"terminated": ERROR}),
            [],
            "BackOff",
            "the container has failed and starts again after 10 s: Error",
        ),
        (
            pod(main={"waiting": {"reason": "ContainerCreating"}}),
            [event("digits-1", "FailedMount", "no claim")],
            "FailedMount",
            "pod digits-1: no claim",
        ),
        (
            pod(main={"waiting": {"reason": "ContainerCreating"}}),  # the pod was scheduled since
            [
                event("digits-1", "FailedScheduling", GPU, BEFORE),
                event("digits-1", "Scheduled", "to n1", AFTER),
            ],
            "StartingContainer",
            "starting container kserve-container; its image may have to be pulled",
        ),
        (
            pod(main={"waiting": {"reason": "ContainerCreating"}}),  # the volume was mounted since
            [event("digits-1", "FailedMount", "no", BEFORE), event("digits-1", "Pulling", "image", AFTER)],
            "StartingContainer",
            "starting container kserve-container; its image may have to be pulled",
        ),
        (
            pod(main={"waiting": {"reason": "PodInitializing"}}),
            [],
            "StartingContainer",
            "starting container kserve-container; its image may have to be pulled",
        ),
        (
            pod(main={"waiting": {"reason": "ErrImagePull", "message": "refused"}}),
            [],
            "ErrImagePull",
            "ErrImagePull: container kserve-container of pod digits-1: refused",
        ),
        (pod(), [], "", ""),
    ],
)
def test_one_pod(one: Document, events: list[Document], reason: str, message: str) -> None:
    found = described(one, events=events)
    assert found[0] == reason
    assert found[1].endswith(message)


def test_a_terminating_pod_can_make_room() -> None:
    leaving = pod(B, name="digits-0", limits={"nvidia.com/gpu": "1"}, deletionTimestamp="T")
    events = [event("digits-1", "FailedScheduling", GPU)]
    assert described(pod(node=""), leaving, events=events)[1].endswith(
        "; pod digits-0 (1 nvidia.com/gpu) is terminating"
    )


def test_the_most_advanced_pod_is_described() -> None:
    assert described(pod(name="a", node=""), pod(name="b"), pod(name="c", main=RUNS))[0] == "LoadingModel"
    assert described(pod(name="a", node=""), pod(name="b", main=STARTS))[0] == "StartingContainer"
    assert described(pod(name="a", ready=True), pod(name="b", node=""))[0] == "Scheduling"
    assert described(pod(ready=True)) == ("", "")


def test_a_release_without_a_pod() -> None:
    assert described()[1] == "waiting for KServe to write the Deployment"
    assert described(of=service(mode="Knative"))[1] == "waiting for KServe to write the Knative Service"
    for made in ({"deployments": [deployment()]}, {"replica_sets": [replica_set()]}):
        assert described(**made)[1] == "waiting for Kubernetes to create the release's pods"
    assert described(of=service(mode="Knative"), revisions=[revision()])[0] == "CreatingPods"
    assert described(deployments=[deployment(B)])[0] == "WaitingForKServe"


def test_the_route_is_reported_once_the_pods_are_ready() -> None:
    def routed(*conditions: Document) -> Document:
        return service(conditions=[condition("PredictorReady", "True"), *conditions])

    waits = routed(condition("IngressReady", "False", "ParentStatusNotAvailable", "not ready"))
    assert described(pod(ready=True), of=waits)[1] == (
        "waiting for the gateway to accept the route: ParentStatusNotAvailable: not ready"
    )
    assert described(of=routed())[1] == "waiting for the gateway to accept the route"
    assert described(pod(A, main=RUNS), of=routed(condition("IngressReady", "True")))[0] == "LoadingModel"
