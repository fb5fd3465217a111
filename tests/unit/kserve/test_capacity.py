"""Whether a node has room for one more pod: nodes, pods and their requests as documents."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from deployer.findings import Finding
from deployer.observed import Document
from deployer.targets.kserve.preflight.rules.capacity import check_room, gives_gpu_back, has_gpu
from deployer.targets.kserve.preflight.rules.inputs import ClusterFacts

GPU = "nvidia.com/gpu"


def service(*, recreate: bool = False, **limits: str) -> Document:
    limits = {GPU if key == "gpu" else key: value for key, value in limits.items()}
    predictor: Document = {"model": {"resources": {"limits": limits, "requests": limits}}}
    if recreate:
        predictor["deploymentStrategy"] = {"type": "Recreate"}
    return {"metadata": {"name": "digits", "namespace": "team"}, "spec": {"predictor": predictor}}


def node(
    name: str = "n1", *, taints: list[Document] | None = None, unschedulable: bool = False, **room: str
) -> Document:
    allocatable = {GPU if key == "gpu" else key: value for key, value in room.items()}
    return {
        "metadata": {"name": name},
        "spec": {"taints": taints, "unschedulable": unschedulable},
        "status": {"allocatable": allocatable},
    }


def pod(service: str = "other", init: str = "0", **requests: str) -> Document:
    requests = {GPU if key == "gpu" else key: value for key, value in requests.items()}
    labels = {"serving.kserve.io/inferenceservice": service}
    return {
        "metadata": {"name": "p", "namespace": "team", "labels": labels},
        "spec": {
            "containers": [{"resources": {"requests": requests}}, {}],
            "initContainers": [{"resources": {"limits": {"cpu": init}}}],
        },
    }


def found(of: Document, nodes: Any, pods: Any = UNSET, *, live: bool = True) -> list[Finding]:
    return list(check_room(of, ClusterFacts(live={} if live else None, nodes=nodes, pods=pods)))


WANTED = service(cpu="1", memory="2Gi", gpu="1")
ROOM = node(cpu="4", memory="8Gi", gpu="1")


def test_nodes_and_pods_that_cannot_be_listed() -> None:
    (one,) = found(WANTED, UNSET)
    assert (one.status, one.detail) == ("ok", "not checked: this user cannot list nodes")
    assert found(service(cpu="1"), UNSET) == []
    assert found(WANTED, [ROOM]) == []
    assert found(WANTED, [ROOM], {}) == []
    assert found(service(cpu="1"), []) == []  # an autoscaler adds the first node


def test_no_node_is_large_enough() -> None:
    (one,) = found(WANTED, [node(cpu="4", memory="8Gi")])
    assert (one.status, one.detail) == ("warning", "no node has 1 nvidia.com/gpu now")
    (one,) = found(service(cpu="8", memory="1536Mi"), [node(cpu="4", memory="1Gi")])
    assert one.detail == "no node has 8 cpu, 1536Mi memory now"
    assert (one.name, one.where) == ("capacity", "serving.cpu")
    (one,) = found(service(cpu="500m", memory="2Gi"), [node(cpu="250m", memory="2Gi")])
    assert one.detail == "no node has 0.5 cpu now"


def test_room_for_one_more() -> None:
    (one,) = found(WANTED, [ROOM], {"n1": [pod(cpu="1")]})
    assert (one.status, one.detail) == ("ok", "node n1 has 1 nvidia.com/gpu free")
    (one,) = found(service(cpu="1"), [node(cpu="4")], {"n1": [pod(cpu="1", init="3")]})
    assert one.detail == "node n1 has room for one more pod"


def test_an_update_needs_room_for_both() -> None:
    (one,) = found(WANTED, [ROOM], {"n1": [pod("digits", gpu="1")]})
    assert one.detail == (
        "an update starts a new pod before it stops the old one, and no node has 1 nvidia.com/gpu free"
    )
    assert "`--strategy recreate`" in one.remedy
    (one,) = found(WANTED, [ROOM], {"n1": [pod(gpu="1")]}, live=False)
    assert (one.detail, one.remedy) == (
        "no node has 1 nvidia.com/gpu free now",
        "Free resources, or add a node.",
    )


def test_with_recreate_the_old_pod_does_not_count() -> None:
    recreate = service(recreate=True, cpu="1", memory="2Gi", gpu="1")
    (one,) = found(recreate, [ROOM], {"n1": [pod("digits", gpu="1")]})
    assert one.status == "ok"
    (one,) = found(recreate, [ROOM], {"n1": [pod(gpu="1")]})
    assert one.detail == "no node has 1 nvidia.com/gpu free now"


def test_init_containers_count_by_their_maximum() -> None:
    (one,) = found(service(cpu="2"), [node(cpu="4")], {"n1": [pod(cpu="1", init="3")]})
    assert one.status == "warning"


def test_tainted_and_cordoned_nodes_do_not_count() -> None:
    kept_off = [{"key": "dedicated", "effect": "NoSchedule"}]
    tolerated = [{"key": GPU, "effect": "NoSchedule"}, {"key": "soft", "effect": "PreferNoSchedule"}]
    full = {"cpu": "4", "memory": "8Gi", "gpu": "1"}
    (one,) = found(WANTED, [node(taints=kept_off, **full), node("n2", unschedulable=True, **full)])
    assert one.status == "warning"
    (one,) = found(WANTED, [node(taints=tolerated, **full)], {"n1": []})
    assert one.status == "ok"


def test_every_resource_is_named_if_no_single_one_is_short() -> None:
    nodes = [node("n1", cpu="4", memory="1Gi"), node("n2", cpu="1", memory="8Gi")]
    (one,) = found(service(cpu="2", memory="2Gi"), nodes)
    assert one.detail == "no node has 2 cpu, 2Gi memory now"


def test_a_terminating_pod_gives_its_gpu_back() -> None:
    assert has_gpu(ROOM)
    assert not has_gpu(node(cpu="4"))
    ending = pod(gpu="1")
    assert not gives_gpu_back(ending)
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T10:00:00Z"
    assert gives_gpu_back(ending)
    assert not gives_gpu_back({**pod(cpu="1"), "metadata": ending["metadata"]})


def test_the_tolerations_and_the_node_selector_of_an_overlay_count() -> None:
    def fits(predictor: Document, *, taint: Document | None = None, **labels: str) -> bool:
        made, one = service(cpu="1"), node(cpu="4", taints=[taint] if taint else [])
        made["spec"]["predictor"] |= predictor
        one["metadata"]["labels"] = labels
        (finding,) = found(made, [one], {"n1": []})
        return finding.status == "ok"

    pool = {"key": "pool", "value": "gpu", "effect": "NoSchedule"}
    for toleration, tolerated in (
        ({"key": "pool", "value": "gpu"}, True),
        ({"key": "pool", "operator": "Exists", "effect": "NoSchedule"}, True),
        ({"operator": "Exists"}, True),
        ({"key": "pool", "value": "cpu"}, False),
        ({"key": "other", "operator": "Exists"}, False),
        ({"key": "pool", "operator": "Exists", "effect": "NoExecute"}, False),
    ):
        assert fits({"tolerations": [toleration]}, taint=pool) is tolerated
    assert fits({}, taint={**pool, "effect": "PreferNoSchedule"})
    assert fits({"nodeSelector": {"pool": "gpu"}}, pool="gpu", zone="a")
    assert not fits({"nodeSelector": {"pool": "gpu"}}, pool="cpu")


def test_the_containers_of_an_overlay_need_room_too() -> None:
    made = service(cpu="1")
    sidecar = {"name": "a", "resources": {"requests": {"cpu": "2"}}}
    made["spec"]["predictor"] |= {"containers": [sidecar]}
    assert found(made, [node(cpu="4")], {"n1": []})[0].status == "ok"
    assert found(made, [node(cpu="2")], {"n1": []})[0].status == "warning"
