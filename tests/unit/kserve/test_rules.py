"""The rules about an InferenceService itself."""

from __future__ import annotations

from typing import Any

import pytest

from deployer.bundle import Bundle
from deployer.findings import Finding
from deployer.targets.kserve.preflight.rules.cluster import check
from deployer.targets.kserve.preflight.rules.inputs import ClusterFacts
from tests.cluster.play import documents


def rendered(*, uri: str = "", env: dict[str, str] | None = None, **render: Any) -> Bundle:
    """Render a release as kdeploy does; `uri` replaces its storage URI."""
    made = documents("team", **render, **({"env": env} if env else {}))
    if uri:
        made.service["spec"]["predictor"]["model"]["storageUri"] = uri
    return made


def broken(made: Bundle) -> list[Finding]:
    return [one for one in check(made, ClusterFacts()) if one.status != "ok"]


@pytest.mark.parametrize(
    "good",
    [
        rendered(),
        rendered(mode="Knative", percent=0),
        rendered(min_replicas=3, max_replicas=3, gpu=2, env={"A": "1"}),
        rendered(name="my-predictor"),
        rendered(uri="pvc://claim/path"),
        rendered(uri="gs://models/digits/"),
        rendered(uri="https://account.blob.core.windows.net/models/digits/"),
    ],
)
def test_a_valid_release_is_accepted(good: Bundle) -> None:
    assert broken(good) == []


@pytest.mark.parametrize(
    ("bad", "what", "where"),
    [
        (rendered(name="my-predictor", mode="Knative"), "derives a wrong URL", "service.name"),
        (rendered(percent=10), "a canary has no effect in Standard mode", "--canary"),
        (rendered(mode="Knative", percent=-1), "invalid percentage -1", "--canary"),
        (rendered(uri="file:///store/digits/"), "cannot read a model store in a folder", "store.uri"),
        (rendered(uri="/store/digits/"), "cannot read a model store in a folder", "store.uri"),
        (
            rendered(env={"A": "x" * (1536 << 10)}),
            "the InferenceService has 1,57",
            "InferenceService",
        ),
    ],
)
def test_an_invalid_release_is_rejected(bad: Bundle, what: str, where: str) -> None:
    (found,) = broken(bad)
    assert what in found.detail
    assert found.where.startswith(where)
    assert found.remedy


def test_every_failure_is_found() -> None:
    bad = rendered(min_replicas=0, percent=10, uri="file:///x/y")
    assert [one.name for one in broken(bad)] == ["replicas", "canary", "model store"]


def test_a_service_in_grpc_gets_a_warning_that_it_does_not_answer_rest() -> None:
    [finding] = broken(rendered(protocol_version="grpc-v2"))
    assert (finding.status, finding.where) == ("warning", "serving.protocol-version")
    assert "it does not answer V1, V2 and curl" in finding.detail
