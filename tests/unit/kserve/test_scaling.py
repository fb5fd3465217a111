"""The metric that replicas are added for: what is rendered, and what a cluster can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET, UnsetType

from deployer.config import load_settings
from deployer.errors import ConfigError
from deployer.observed import Document
from deployer.targets.kserve.preflight.rules.cluster import check
from deployer.targets.kserve.preflight.rules.inputs import ClusterFacts
from tests.cluster.play import documents

QUERY: dict[str, Any] = {
    "metric": "prometheus",
    "target": 2.5,
    "query": 'sum(rate(x{a="b"}[1m]))',
    "prometheus": "http://prometheus:9090",
}


def found(*, keda: bool | UnsetType = UNSET, live: Document | None = None, **render: Any) -> list[str]:
    """Return `status: detail` of the findings about scaling."""
    made = documents("team", **render)
    findings = check(made, ClusterFacts(keda=keda, live=live))
    return [f"{one.status}: {one.detail}" for one in findings if one.name in ("scaling", "replicas")]


def predictor(**render: Any) -> Document:
    rendered: Document = documents("team", **render).service["spec"]["predictor"]
    return rendered


def test_the_metric_is_rendered_for_each_autoscaler() -> None:
    assert not {"scaleMetric", "scaleTarget", "autoScaling"} & predictor(max_replicas=3).keys()
    cpu = predictor(max_replicas=3, metric="cpu", target=60)
    assert (cpu["scaleMetric"], cpu["scaleTarget"]) == ("cpu", 60)
    rps = predictor(mode="Knative", max_replicas=3, metric="rps")
    assert (rps["scaleMetric"], "scaleTarget" in rps) == ("rps", False)
    made = documents("team", max_replicas=3, **QUERY).service
    assert made["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "keda"
    [metric] = made["spec"]["predictor"]["autoScaling"]["metrics"]
    assert metric["external"]["metric"] == {
        "backend": "prometheus",
        "serverAddress": "http://prometheus:9090",
        "query": 'sum(rate(x{a="b"}[1m]))',
    }
    assert metric["external"]["target"] == {"type": "Value", "value": "2.5"}
    assert "scaleMetric" not in made["spec"]["predictor"]  # KServe refuses it with KEDA


@pytest.mark.parametrize(
    ("given", "finding"),
    [
        ({"metric": "cpu", "target": 60}, "ok: cpu"),
        ({"metric": "memory", "target": 60}, "ok: memory"),
        ({"metric": "concurrency", "mode": "Knative"}, "ok: concurrency"),
        ({**QUERY, "keda": True}, "ok: prometheus"),
        (QUERY, "ok: prometheus"),  # this user cannot find out whether KEDA is installed
        ({**QUERY, "keda": False}, "failure: KEDA is not installed"),
        ({"metric": "concurrency"}, "failure: cannot scale on concurrency in Standard mode"),
        ({"metric": "rps", "target": 5}, "failure: cannot scale on rps in Standard mode"),
        ({"metric": "cpu", "mode": "Knative"}, "failure: cannot scale on cpu in Knative mode"),
        ({**QUERY, "mode": "Knative"}, "failure: cannot scale on prometheus in Knative mode"),
        ({"gpu": 1, "max_replicas": 3}, "warning: replicas are added for CPU usage"),
        ({"gpu": 1, "min_replicas": 0, "max_replicas": 2, "mode": "Knative"}, None),
        ({"gpu": 1, "min_replicas": 3, "max_replicas": 3}, None),
        ({"gpu": 1, "max_replicas": 3, "metric": "cpu"}, "ok: cpu"),
        ({"max_replicas": 3}, None),
        ({"min_replicas": 0}, "warning: min-replicas = 0 does not scale to zero"),
        ({**QUERY, "min_replicas": 0}, "ok: prometheus"),
    ],
)
def test_what_the_mode_and_the_cluster_can_scale_on(given: dict[str, Any], finding: str | None) -> None:
    details = found(**given)
    assert len(details) == (finding is not None)
    assert not finding or details[0].startswith(finding)


def test_an_overlay_can_choose_knatives_autoscaler_for_cpu() -> None:
    made = documents("team", mode="Knative", metric="cpu", target=70)
    made.service["metadata"]["annotations"]["autoscaling.knative.dev/class"] = "hpa.autoscaling.knative.dev"
    details = [one.detail for one in check(made, ClusterFacts()) if one.name == "scaling"]
    assert details == ["cpu"]


def test_a_change_of_the_autoscaler_names_the_one_that_stays() -> None:
    of_cpu, of_query = documents("team").service, documents("team", **QUERY).service
    assert found(live=of_cpu) == []
    assert found(live=of_query, **QUERY) == ["ok: prometheus"]
    made = check(documents("team", **QUERY), ClusterFacts(live=of_cpu))
    assert [one.remedy for one in made if one.status == "warning"] == [
        "Delete it during the rollout: `kubectl -n team delete hpa digits-predictor`."
    ]
    made = check(documents("team"), ClusterFacts(live=of_query))
    [remedy] = [one.remedy for one in made if one.name == "scaling"]
    assert "delete scaledobject digits-predictor" in remedy


FLAGS = {"model.name": "digits", "model.version": "1.0", "model.handler": "h.py"}


@pytest.mark.parametrize(
    ("given", "where", "what"),
    [
        ({"target": "5"}, "target", "no effect without its metric"),
        ({"metric": "cpu", "query": "up"}, "query", "no effect without its metric"),
        ({"prometheus": "http://x:9090"}, "prometheus", "no effect without its metric"),
        ({"metric": "memory"}, "metric", "metric memory needs scaling.target"),
        ({"metric": "prometheus"}, "metric", "metric prometheus needs scaling.target"),
        ({"metric": "prometheus", "target": "1"}, "metric", "metric prometheus needs scaling.query"),
        (
            {"metric": "prometheus", "target": "1", "query": "up"},
            "metric",
            "needs scaling.prometheus",
        ),
        ({"metric": "cpu", "target": "101"}, "target", "invalid target 101 of cpu"),
        ({"metric": "memory", "target": "0.5"}, "target", "invalid target 0.5 of memory"),
        ({"metric": "concurrency", "target": "1.5"}, "target", "invalid target 1.5 of concurrency"),
        ({"metric": "rps", "target": "0"}, "target", "expected a number > 0"),
        ({"metric": "gpu"}, "metric", "invalid value 'gpu'"),
    ],
)
def test_settings_that_do_not_fit_each_other(
    given: dict[str, str], where: str, what: str, tmp_path: Path
) -> None:
    flags = FLAGS | {f"scaling.{key}": value for key, value in given.items()}
    with pytest.raises(ConfigError, match=what) as caught:
        load_settings(None, environment={}, flags=flags, folder=tmp_path)
    assert f"scaling.{where}" in (caught.value.where or "")


def test_scaling_settings_that_fit(tmp_path: Path) -> None:
    for given in (
        {"metric": "cpu"},
        {"metric": "rps", "target": "250"},
        {"metric": "memory", "target": "80"},
    ):
        flags = FLAGS | {f"scaling.{key}": value for key, value in given.items()}
        load_settings(None, environment={}, flags=flags, folder=tmp_path)
