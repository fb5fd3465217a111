"""Kinds of objects: their URLs, and the kinds that kdeploy writes."""

from __future__ import annotations

import pytest

from deployer.errors import TargetError
from deployer.targets.kserve.client.resources import NODE, POD
from deployer.targets.kserve.state.children import selector
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE, resource_of


def test_paths_and_names() -> None:
    assert INFERENCE_SERVICE.full_name == "inferenceservices.serving.kserve.io"
    services = "/apis/serving.kserve.io/v1beta1/namespaces/team/inferenceservices"
    assert INFERENCE_SERVICE.path("team") == services
    assert INFERENCE_SERVICE.path() == "/apis/serving.kserve.io/v1beta1/inferenceservices"
    assert (POD.full_name, POD.path("team", "a/b")) == ("pods", "/api/v1/namespaces/team/pods/a%2Fb")
    assert NODE.path("team", "n1") == "/api/v1/nodes/n1"
    assert selector("digits") == {"labelSelector": "serving.kserve.io/inferenceservice=digits"}


def test_only_kinds_that_kdeploy_writes_have_a_resource() -> None:
    document = {"apiVersion": INFERENCE_SERVICE.api_version, "kind": "InferenceService"}
    assert resource_of(document) is INFERENCE_SERVICE
    with pytest.raises(TargetError, match="kind v1 ConfigMap"):
        resource_of({"apiVersion": "v1", "kind": "ConfigMap"})
