"""Pods that quotas and limits admit or reject."""

from __future__ import annotations

from typing import Any

from deployer.findings import Finding
from deployer.observed import Document
from deployer.targets.kserve.preflight.rules.inputs import ClusterFacts
from deployer.targets.kserve.preflight.rules.quotas import check_quotas


def service(**amounts: str) -> Document:
    named = {"nvidia.com/gpu" if key == "gpu" else key: value for key, value in amounts.items()}
    return {"spec": {"predictor": {"model": {"resources": {"limits": named, "requests": named}}}}}


def quota(hard: dict[str, str], used: dict[str, str] | None = None) -> Document:
    return {"metadata": {"name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used or {}}}


def limits(**rule: Any) -> Document:
    return {"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", **rule}]}}


def found(of: Document, *quotas: Document, ranges: tuple[Document, ...] = ()) -> list[Finding]:
    return list(check_quotas(of, ClusterFacts(quotas=list(quotas), limits=list(ranges))))


WANTED = service(cpu="1", memory="2Gi", gpu="1")


def test_a_namespace_without_quotas() -> None:
    assert found(WANTED) == []


def test_a_quota_that_admits_the_pod() -> None:
    (one,) = found(WANTED, quota({"requests.memory": "4Gi", "pods": "2", "services": "1"}, {"pods": "1"}))
    assert one.status == "ok"
    (one,) = found(WANTED, {"metadata": {"name": "new"}, "spec": {"hard": {"memory": "4Gi"}}})
    assert one.status == "ok"


def test_a_quota_that_is_too_small() -> None:
    (one,) = found(WANTED, quota({"limits.memory": "1Gi"}))
    assert (one.status, one.where) == ("failure", "ResourceQuota q")
    assert one.detail == "ResourceQuota q allows 1Gi limits.memory, but one pod requests 2Gi"
    (one,) = found(WANTED, quota({"requests.nvidia.com/gpu": "0"}))
    assert one.detail.endswith("allows 0 requests.nvidia.com/gpu, but one pod requests 1")


def test_a_quota_that_is_used_up() -> None:
    (one,) = found(WANTED, quota({"cpu": "2", "pods": "5"}, {"cpu": "1500m", "pods": "1"}))
    assert one.status == "warning"
    assert one.detail == "ResourceQuota q: 1500m of 2 cpu are used, and a new pod requests 1"
    (one,) = found(WANTED, quota({"pods": "1"}, {"pods": "1"}))
    assert one.detail.endswith("1 of 1 pods are used, and a new pod requests 1")


def test_limit_ranges() -> None:
    (one,) = found(WANTED, ranges=(limits(max={"memory": "1Gi", "cpu": "2", "storage": "1Gi"}),))
    assert (one.detail, one.remedy) == (
        "LimitRange l allows 1Gi memory, but [serving] requests 2Gi",
        "Lower `serving.memory`.",
    )
    (one,) = found(WANTED, ranges=(limits(min={"cpu": "2", "memory": "1Gi"}),))
    assert (one.status, one.remedy) == ("failure", "Raise `serving.cpu`.")
    (one,) = found(WANTED, ranges=(limits(max={"nvidia.com/gpu": "0"}, type="Pod"),))
    assert one.remedy == "Lower `serving.gpu`."
    (one,) = found(WANTED, ranges=(limits(max={"memory": "1Gi"}, type="PersistentVolumeClaim"),))
    assert one.status == "ok"
