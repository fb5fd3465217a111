"""`kdeploy adopt` writes the project of a service that others created, and changes nothing on the cluster."""

from __future__ import annotations

import copy
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from deployer.config import Store
from tests.cluster.commands import Kdeploy
from tests.cluster.kube import Kube
from tests.cluster.proxy import Proxy

SERVICE: dict[str, Any] = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {
        "name": "pipeline-test08",
        "labels": {"team": "vision"},
        "annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"},
    },
    "spec": {
        "predictor": {
            "minReplicas": 1,
            "maxReplicas": 3,
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "serviceAccountName": "reader",
            "model": {
                "modelFormat": {"name": "pytorch"},
                "runtime": "kserve-torchserve",
                "protocolVersion": "v2",
                "storageUri": "s3://models/pipeline",
                "resources": {"limits": {"cpu": "2", "memory": "4Gi"}, "requests": {"cpu": "1"}},
                "env": [
                    {"name": "OMP_NUM_THREADS", "value": "1"},
                    {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}},
                ],
            },
        }
    },
}


@pytest.fixture
def live(kube: Kube, namespace: str) -> str:
    path = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices"
    kube.create(path, copy.deepcopy(SERVICE))
    return f"{path}/pipeline-test08"


@pytest.fixture
def empty(kdeploy: Kdeploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "adopted"
    folder.mkdir()
    monkeypatch.chdir(folder)
    manifest = {"model": {"modelName": "pipeline", "modelVersion": "1.0", "handler": "handler.py"}}
    with zipfile.ZipFile(tmp_path / "pipeline.mar", "w") as archive:
        archive.writestr("handler.py", "def handle(data, context):\n    return data\n")
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
    return folder


def test_adopting_writes_a_project_and_changes_nothing(
    kdeploy: Kdeploy, live: str, empty: Path, proxy: Proxy, kube: Kube, namespace: str
) -> None:
    before = kube.get(live)
    ended = kdeploy("adopt", "pipeline-test08", "--from-mar", "../pipeline.mar", "-o", "json")
    assert ended.code == 0, ended.err
    assert proxy.writes() == []
    assert kube.get(live) == before
    fates = {line["field"]: (line["fate"], line["becomes"]) for line in json.loads(ended.out)}
    assert fates["spec.predictor.nodeSelector"][0] == "stays"
    assert fates["spec.predictor.minReplicas"] == ("taken over", "scaling.min-replicas")
    assert fates["spec.predictor.model.runtime"][0] == "taken over"
    assert (empty / "model" / "handler.py").exists()
    config = {key: one["value"] for key, one in json.loads(kdeploy("config", "-o", "json").out).items()}
    assert (config["model.name"], config["service.name"]) == ("pipeline", "pipeline-test08")
    assert (config["targets.cluster.namespace"], config["default-target"]) == (namespace, "cluster")
    assert (config["serving.cpu"], config["serving.protocol-version"]) == ("2", "v2")
    assert config["store.service-account"] == "reader"


def test_a_dry_run_prints_the_config_and_writes_nothing(kdeploy: Kdeploy, live: str, empty: Path) -> None:
    ended = kdeploy("adopt", "pipeline-test08", "--dry-run")
    assert 'name = "pipeline-test08"' in ended.out
    assert list(empty.iterdir()) == []


def test_a_project_is_not_overwritten(kdeploy: Kdeploy, live: str, empty: Path) -> None:
    (empty / "kdeploy.toml").write_text('[model]\nname = "a"\nversion = "1"\nhandler = "h.py"\n')
    ended = kdeploy("adopt", "pipeline-test08", "--set", 'targets={"a": {"kind": "kserve"}}')
    assert (ended.code, "already exists" in ended.err) == (3, True)
    assert kdeploy("adopt", "pipeline-test08").code == 3  # this project's target is this machine


def test_a_service_that_does_not_exist_is_not_found(kdeploy: Kdeploy, empty: Path) -> None:
    ended = kdeploy("adopt", "letters")
    assert (ended.code, "letters not found" in ended.err) == (11, True)
    assert list(empty.iterdir()) == []


def test_the_adopted_service_is_rolled_out_with_its_own_fields(
    kdeploy: Kdeploy, live: str, empty: Path, kube: Kube, s3_config: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kdeploy("adopt", "pipeline-test08", "--from-mar", "../pipeline.mar").code == 0
    secret = {"metadata": {"name": "hf"}, "stringData": {"token": "x"}}
    namespace = f"/api/v1/namespaces/{live.split('/')[5]}"
    kube.create(f"{namespace}/secrets", secret)
    kube.create(f"{namespace}/serviceaccounts", {"metadata": {"name": "reader"}})
    monkeypatch.setenv("KDEPLOY_STORE_ENDPOINT", s3_config.endpoint or "")
    where = ("--store", s3_config.uri)
    refused = kdeploy("rollout", "--no-wait", *where)
    assert (refused.code, "field conflict" in refused.err) == (12, True)
    ended = kdeploy("rollout", "--no-wait", *where, "--force-conflicts")
    assert ended.code == 0, ended.err
    document = kube.get(live)
    spec = document["spec"]["predictor"]
    assert (spec["nodeSelector"], document["metadata"]["labels"]["team"]) == ({"pool": "gpu"}, "vision")
    assert spec["model"]["storageUri"].startswith(f"{s3_config.uri}/pipeline/1.0-")
    assert spec["model"]["runtime"].startswith("kdeploy-torchserve-")
    assert spec["model"]["resources"] == {
        "limits": {"cpu": "2", "memory": "4Gi"},
        "requests": {"cpu": "1", "memory": "4Gi"},
    }
