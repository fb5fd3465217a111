"""What the documents alone tell, before the first write."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from msgspec import structs

from deployer.bundle import Bundle, Sealed
from deployer.findings import Finding
from deployer.targets.kserve.preflight.rules.documents import GPU, check_bundle
from tests.cluster.play import documents


def rendered(*, uri: str = "", env: dict[str, str] | None = None, **render: Any) -> Bundle:
    """Render a release as kdeploy does; `uri` in the place of its own."""
    made = documents("team", **render, **({"env": env} if env else {}))
    if uri:
        made.service["spec"]["predictor"]["model"]["storageUri"] = uri
    return made


def broken(made: Bundle) -> list[Finding]:
    return [one for one in check_bundle(made) if one.status != "ok"]


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
def test_what_is_taken(good: Bundle) -> None:
    assert broken(good) == []


@pytest.mark.parametrize(
    ("bad", "what", "where"),
    [
        (rendered(name="1digits"), "no service of the name", "model.name"),
        (rendered(name="my-predictor", mode="Knative"), "derives its URL wrongly", "model.name"),
        (rendered(min_replicas=2), "at least 2 replicas are more than the 1", "scaling.min-replicas"),
        (rendered(min_replicas=-1), "cannot be -1 replicas", "scaling.min-replicas"),
        (rendered(env={"PYTHONPATH": "/x"}), "KServe refuses PYTHONPATH", "serving.env"),
        (rendered(percent=10), "a canary does nothing in Standard mode", "--canary"),
        (rendered(mode="Knative", percent=-1), "-1 is not a percentage", "--canary"),
        (rendered(uri="file:///store/digits/"), "cannot reach a model store in a folder", "store.uri"),
        (rendered(uri="/store/digits/"), "cannot reach a model store in a folder", "store.uri"),
        (rendered(uri="ftp://x/y"), "fetches no release from ftp://", "store.uri"),
        (
            rendered(env={"A": "x" * (1536 << 10)}),
            "the InferenceService would have",
            "InferenceService",
        ),
    ],
)
def test_what_is_refused(bad: Bundle, what: str, where: str) -> None:
    (found,) = broken(bad)
    assert what in found.detail
    assert found.where.startswith(where)
    assert found.remedy


def test_a_gpu_is_requested_as_it_is_limited() -> None:
    made = rendered(gpu=2)
    resources = made.service["spec"]["predictor"]["model"]["resources"]
    made.service["spec"]["predictor"]["model"]["resources"] = {**resources, "requests": {GPU: "1"}}
    (found,) = broken(made)
    assert found.detail == "1 of nvidia.com/gpu are requested and 2 are the limit, which must be the same"


def test_a_secret_and_annotations_that_are_too_large() -> None:
    value = base64.b64encode(b"x" * (1 << 20)).decode()
    metadata = {"name": "models", "annotations": {"role": "x" * (256 << 10)}}
    full = {"kind": "Secret", "metadata": metadata, "data": {"key": value, "other": "eA=="}}
    assert [one.detail for one in broken(structs.replace(rendered(), secret=Sealed(full)))] == [
        "the Secret would have 1,660,353 bytes, and the API server takes 1,572,864",
        "what the Secret holds would have 1,048,577 bytes, and the API server takes 1,048,576",
        "the Secret's annotations would have 262,148 bytes, and the API server takes 262,144",
    ]


def test_every_fault_is_found() -> None:
    bad = rendered(min_replicas=2, env={"PYTHONPATH": "/x"}, percent=10, uri="ftp://x/y")
    assert [one.name for one in broken(bad)] == ["replicas", "environment", "canary", "model store"]
