"""What is refused before the first write."""

from __future__ import annotations

from typing import Any

import pytest

from deployer.errors import ConfigError
from deployer.target import Document
from deployer.targets.kserve.checks import check_service, fits_a_node
from deployer.targets.kserve.serving import MODE_ANNOTATION


def service(
    name: str = "digits", namespace: str = "team", mode: str = "Knative", **predictor: Any
) -> Document:
    model = {"storageUri": "s3://models/digits/1/"}
    return {
        "metadata": {"name": name, "namespace": namespace, "annotations": {MODE_ANNOTATION: mode}},
        "spec": {"predictor": {"model": model, **predictor}},
    }


def at(uri: str) -> Document:
    return service(model={"storageUri": uri})


@pytest.mark.parametrize(
    "good",
    [
        service(),
        service(mode="Standard"),
        service(canaryTrafficPercent=10),
        service("a" * 47),
        service("a" * 26, "b" * 26, mode="Standard"),
        at("pvc://claim/path"),
        at("oci+native://registry/image"),
        at("https://account.blob.core.windows.net/models/digits/"),
    ],
)
def test_what_is_taken(good: Document) -> None:
    check_service(good, None, {"team": "vision"})
    check_service(good, good, {})


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (service(namespace="kserve"), "fetches no models in namespace kserve"),
        (service("a" * 48), "has 64 characters"),
        (service("a" * 27, "b" * 26, mode="Standard"), "has 64 characters"),
        (service("my-predictor"), "derives its URL wrongly"),
        (service(mode="Standard", canaryTrafficPercent=10), "does nothing in Standard mode"),
        (at("file:///store/digits/"), "cannot reach a model store in a folder"),
        (at("/store/digits/"), "cannot reach a model store in a folder"),
        (at("ftp://x/y"), "fetches nothing from ftp://"),
    ],
)
def test_what_is_refused(bad: Document, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        check_service(bad, None, {})
    assert caught.value.where


def test_a_control_planes_namespace() -> None:
    with pytest.raises(ConfigError, match="control plane"):
        check_service(service(), None, {"control-plane": "kserve"})


def test_the_mode_stays_as_it_is() -> None:
    old = service(mode="RawDeployment")
    with pytest.raises(ConfigError, match="served in Standard mode"):
        check_service(service(mode="Knative"), old, {})
    check_service(service(mode="Standard"), old, {})


def test_a_node_that_could_hold_it() -> None:
    nodes = [{"status": {"allocatable": {"nvidia.com/gpu": "2"}}}, {"status": {}}]
    assert fits_a_node("nvidia.com/gpu", 2, nodes)
    assert not fits_a_node("nvidia.com/gpu", 3, nodes)
    assert not fits_a_node("nvidia.com/gpu", 1, [])
