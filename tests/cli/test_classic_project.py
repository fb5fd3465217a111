"""The project of the usual guides to TorchServe on KServe, made by torch-model-archiver, becomes a release.

Two commands do it. Its handler and its clients stay as they are.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import urllib3

from .conftest import Project

pytestmark = pytest.mark.torchserve

HOST = "pipeline-test08.pipeline.svc.cluster.local"

HANDLER = """
import base64
import io
import json
import os
import time

import torch
from PIL import Image


class CustomHandler:
    def __init__(self):
        self.model = None
        self.initialized = False

    def initialize(self, context):
        properties = context.system_properties
        folder = properties.get("model_dir")
        self.device = torch.device(
            "cuda:" + str(properties.get("gpu_id")) if torch.cuda.is_available() else "cpu"
        )
        with open(os.path.join(folder, "labels.json")) as file:
            self.labels = json.load(file)
        serialized = context.manifest["model"]["serializedFile"]
        self.model = torch.jit.load(os.path.join(folder, serialized), map_location=self.device)
        self.model.eval()
        self.initialized = True

    def preprocess(self, data):
        body = data[0]["body"]
        if isinstance(body, (bytes, bytearray)):
            body = json.loads(body)
        assert list(body.keys()) == ["data"], body
        image = Image.open(io.BytesIO(base64.b64decode(body["data"]))).convert("L").resize((2, 2))
        return torch.tensor([list(image.getdata())], dtype=torch.float32, device=self.device) / 255

    def handle(self, data, context):
        start = time.time()
        batch = self.preprocess(data)
        with torch.no_grad():
            output = self.model(batch)
        context.metrics.add_time("InferenceTime", (time.time() - start) * 1000, None, "ms")
        return [{"response": self.labels[int(output.argmax(1))], "sum": round(float(batch.sum()), 2)}]
"""

PROPERTIES = """\
# config.properties of the cluster
inference_address=http://0.0.0.0:8085
management_address=http://0.0.0.0:8085
metrics_address=http://0.0.0.0:8082
grpc_inference_port=7070
grpc_management_port=7071
enable_envvars_config=true
install_py_dep_per_model=true
enable_metrics_api=true
metrics_mode=prometheus
NUM_WORKERS=1
number_of_netty_threads=4
job_queue_size=10
config_path=/mnt/models/config/config.properties
gpu_id=0
service_envelope=kserve
model_store=/mnt/models/model-store
model_snapshot={"name":"startup.cfg","modelCount":1,"models":{"pipeline":{"1.0":{"defaultVersion":true,\\
  "marName":"pipeline.mar","minWorkers":1,"maxWorkers":3,"batchSize":4,"maxBatchDelay":100,"responseTimeout":120}}}}
"""

SERVICE = """\
apiVersion: v1
kind: Namespace
metadata:
  name: pipeline
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: pipeline-test08
  namespace: pipeline
  annotations:
    sidecar.istio.io/inject: "false"
spec:
  predictor:
    minReplicas: 1
    maxReplicas: 2
    nodeSelector:
      pool: gpu
    pytorch:
      protocolVersion: v1
      storageUri: pvc://models/pipeline
      resources:
        limits: {cpu: "1", memory: 3Gi}
      env:
        - {name: OMP_NUM_THREADS, value: "1"}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project after `kdeploy init --from-mar` and `kdeploy rollout`."""
    import torch

    folder = tmp_path_factory.mktemp("classic")
    (folder / "handler.py").write_text(HANDLER)
    (folder / "extra").mkdir()
    (folder / "extra" / "labels.json").write_text(json.dumps(["dark", "light"]))
    (folder / "extra" / "MANIFEST.json").write_text('{"createdBy": "vision"}')
    (folder / "extra" / "requirements.txt").write_text("pillow\n")
    (folder / "config.properties").write_text(PROPERTIES)
    (folder / "isvc.yaml").write_text(SERVICE)
    network = torch.nn.Linear(4, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        network.bias.copy_(torch.tensor([2.0, -2.0]))
    torch.jit.trace(network, torch.zeros(1, 4)).save(str(folder / "model.pt"))
    archiver = Path(sys.executable).with_name("torch-model-archiver")
    options = ["--model-name", "pipeline", "--version", "1.0", "--serialized-file", "model.pt"]
    options += ["--handler", "handler.py", "--extra-files", "extra", "--export-path", "."]
    subprocess.run([archiver, *options], cwd=folder, check=True)
    for made_into in ("handler.py", "model.pt"):
        (folder / made_into).unlink()
    shutil.rmtree(folder / "extra")
    project = Project(folder)
    project.run(
        *("init", ".", "--from-mar", "pipeline.mar"),
        *("--properties", "config.properties", "--isvc", "isvc.yaml"),
    )
    project.run("rollout", "--target", "local", "--store", "model-store")
    yield project
    project.run("local", "stop", "--target", "local")


def picture(shade: int) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (8, 8), shade).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def url(project: Project) -> str:
    """The address of the ingress."""
    found = json.loads(project.run("local", "status", "--target", "local", "-o", "json").stdout)["ingress"]
    return str(found)


def ask(url: str, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    response = urllib3.request(
        "POST",
        url + path,
        body=json.dumps(body),
        headers={"Host": HOST, **headers},
        timeout=60,
        retries=False,
    )
    return response.status, json.loads(response.data)


@pytest.mark.parametrize("headers", [{"Content-Type": "application/json"}, {}], ids=["json", "no type"])
@pytest.mark.parametrize(
    "path", ["/predictions/pipeline", "/predictions/pipeline/1.0", "/v1/models/pipeline:predict"]
)
def test_the_client_gets_its_answer(url: str, path: str, headers: dict[str, str]) -> None:
    wanted = (200, {"response": "light", "sum": 4.0})
    assert ask(url, path, {"data": picture(255)}, **headers) == wanted


def test_instances_of_v1_get_predictions(url: str) -> None:
    body = {"instances": [{"data": picture(255)}, {"data": picture(0)}]}
    wanted = {"predictions": [{"response": "light", "sum": 4.0}, {"response": "dark", "sum": 0.0}]}
    assert ask(url, "/v1/models/pipeline:predict", body) == (200, wanted)


def test_each_request_of_a_batch_gets_its_own_answer(url: str) -> None:
    shades = [0, 255] * 6

    def one(shade: int) -> tuple[int, Any]:
        return ask(url, "/predictions/pipeline", {"data": picture(shade)})

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(one, shades))
    assert answers == [
        (200, {"response": "light" if shade else "dark", "sum": 4.0 if shade else 0.0}) for shade in shades
    ]


def test_predict_uses_the_name_of_the_model(project: Project) -> None:
    (project.folder / "request.json").write_text(json.dumps({"data": picture(255)}))
    for flags in ([], ["--kserve"]):
        ended = project.run("predict", "request.json", "--target", "local", "-o", "json", *flags)
        assert json.loads(ended.stdout)[0]["prediction"] == {"response": "light", "sum": 4.0}


def test_an_archive_made_by_hand_is_released_as_it_is(project: Project) -> None:
    """It has packages, a text as its model file, weights with a fixed name, and a key in its manifest."""
    handler = (
        "from pathlib import Path\n"
        "from lib.deep import shout\n"
        "class Handler:\n"
        "    def initialize(self, context):\n"
        "        folder = Path(context.system_properties['model_dir'])\n"
        "        self.parts = [(folder / 'weights' / 'net.bin').read_text(), context.manifest['team']]\n"
        "        self.parts.append(context.manifest['model']['modelFile'])\n"
        "    def handle(self, data, context):\n"
        "        return [shout(' '.join(self.parts))] * len(data)\n"
    )
    described = {"modelName": "Hand_made.v2", "handler": "build/handler.py", "modelFile": "names.txt"}
    files = {
        "handler.py": handler,
        "lib/__init__.py": "",
        "lib/deep/__init__.py": "from lib.deep.voice import shout as shout\n",
        "lib/deep/voice.py": "def shout(text):\n    return text.upper()\n",
        "weights/net.bin": "ones",
        "names.txt": "a b",
        "MAR-INF/MANIFEST.json": json.dumps({"model": described, "team": "vision"}),
    }
    with tarfile.open(project.folder / "hand.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"Hand_made.v2/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    where = ["--target", "local", "--store", "model-store", "--service", "by-hand"]
    # Another model than the project's: its name and version replace those of kdeploy.toml.
    sets = ["model.name=Hand_made.v2"]
    project.run("rollout", "--mar", "hand.tar.gz", *where, sets=sets)
    (project.folder / "any.txt").write_text("any")
    ended = project.run("predict", "any.txt", "--target", "local", "--service", "by-hand", "-o", "json")
    assert json.loads(ended.stdout)[0]["prediction"] == "ONES VISION NAMES.TXT"


def test_the_settings_came_over(project: Project) -> None:
    config = {key: one["value"] for key, one in settings(project).items()}
    assert (config["model.name"], config["service.name"]) == ("pipeline", "pipeline-test08")
    assert [config[f"serving.{key}"] for key in ("min-workers", "max-workers", "batch-size")] == [1, 3, 4]
    assert (config["serving.memory"], config["serving.env.OMP_NUM_THREADS"]) == ("3Gi", "1")
    assert (config["torchserve.gpu_id"], config["torchserve.job_queue_size"]) == (0, 10)
    assert config["serving.overlay.spec.predictor.nodeSelector.pool"] == "gpu"
    assert (config["scaling.max-replicas"], config["store.uri"]) == (2, "pvc://models/kdeploy")


def settings(project: Project) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(project.run("config", "-o", "json").stdout)
    return found
