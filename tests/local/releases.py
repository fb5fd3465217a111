"""Small real releases in a model store's layout, and bundles for them."""

from __future__ import annotations

import functools
import json
import zipfile
from pathlib import Path

from deployer.bundle import Bundle
from deployer.manifest import render_runtime, runtime_name
from deployer.observed import Document
from deployer.targets.local.revisions import Record, set_desired

DRAIN = 1  # second

ANSWER = """
import os
import time


def handle(data, context):
    if data is None:
        return None
    for row in data:
        body = row.get("body") or row.get("data")
        if isinstance(body, dict) and body.get("sleep"):
            time.sleep(body["sleep"])
        if isinstance(body, dict) and body.get("die"):
            os._exit(1)
    return [{{"release": {release!r}, "mode": os.environ.get("MODE", "")}} for _ in data]
"""

IMPORTS_A_MISSING_MODULE = "import no_such_module\n\n\ndef handle(data, context):\n    return [1]\n"

RAISES = """
class Handler:
    def initialize(self, context):
        raise ValueError("the weights have another shape")

    def handle(self, data, context):
        return [1 for _ in data]
"""

NOISY_BACKEND = """
import os
import zipfile

FILES = {
    "noisy.py": "WORD = 'quiet'",
    "noisy-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: noisy\\nVersion: 1",
    "noisy-1.dist-info/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any",
    "noisy-1.dist-info/RECORD": "noisy.py,,",
}


def build_wheel(folder, *args, **more):
    print("a line of build output\\n" * 8000)
    name = "noisy-1-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        for path, text in FILES.items():
            wheel.writestr(path, text + "\\n")
    return name
"""


def make_noisy_package(folder: Path) -> Path:
    """Make the source of a package whose build prints 180 KB and needs no network."""
    folder.mkdir()
    (folder / "backend.py").write_text(NOISY_BACKEND)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "noisy"\nversion = "1"\n'
    )
    return folder


def make_release(
    folder: Path,
    name: str,
    handler: str,
    *,
    requirements: str | None = None,
    extra: dict[str, bytes] | None = None,
    workers: int = 1,
) -> Path:
    """Make a release's folder, with `config/config.properties` and `model-store/NAME.mar`."""
    (folder / "config").mkdir(parents=True)
    (folder / "model-store").mkdir()
    model = {"modelName": name, "handler": "handler.py", "modelVersion": "1.0"}
    with zipfile.ZipFile(folder / "model-store" / f"{name}.mar", "w") as archive:
        archive.writestr("handler.py", handler)
        if requirements is not None:
            model["requirementsFile"] = "requirements.txt"
            archive.writestr("requirements.txt", requirements)
        for path, data in (extra or {}).items():
            archive.writestr(path, data)
        if "model-config.yaml" in (extra or {}):
            model["configFile"] = "model-config.yaml"
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))
    version = {
        "defaultVersion": True,
        "marName": f"{name}.mar",
        "minWorkers": workers,
        "maxWorkers": workers,
        "batchSize": 1,
        "maxBatchDelay": 10,
        "responseTimeout": 60,
    }
    snapshot = {"name": "startup.cfg", "modelCount": 1, "models": {name: {"1.0": version}}}
    lines = [
        "inference_address=http://0.0.0.0:8080",
        "management_address=http://127.0.0.1:8081",
        "metrics_address=http://0.0.0.0:8082",
        "enable_metrics_api=true",
        "metrics_mode=prometheus",
        "grpc_inference_port=7070",
        "grpc_management_port=7071",
        "disable_token_authorization=true",
        f"install_py_dep_per_model={str(requirements is not None).lower()}",
        "max_request_size=1000000",
        "model_store=/mnt/models/model-store",
        f"model_snapshot={json.dumps(snapshot)}",
    ]
    (folder / "config" / "config.properties").write_text("\n".join(lines) + "\n")
    return folder


@functools.cache
def _runtime() -> tuple[Document, str]:
    runtime = render_runtime()
    return runtime, runtime_name(runtime)


def make_bundle(
    name: str,
    release: str,
    folder: Path,
    *,
    canary: int | None = None,
    env: dict[str, str | Document] | None = None,
    namespace: str = "default",
    replicas: int = 1,
) -> Bundle:
    """Make a bundle with a ServingRuntime and an InferenceService like those that kdeploy renders.

    A value of `env` is text, or the source of a value.
    """
    runtime, called = _runtime()
    drain = {"KDEPLOY_DRAIN_SECONDS": str(DRAIN), "KDEPLOY_GRACE_SECONDS": str(DRAIN + 60)}
    predictor: Document = {
        "minReplicas": replicas,
        "timeout": DRAIN + 70,
        "model": {
            "modelFormat": {"name": "pytorch"},
            "runtime": called,
            "storageUri": folder.as_uri() + "/",
            "env": [
                {"name": key, "value" if isinstance(value, str) else "valueFrom": value}
                for key, value in {**drain, **(env or {})}.items()
            ],
        },
    }
    if canary is not None:
        predictor["canaryTrafficPercent"] = canary
    return Bundle(
        runtime={
            "apiVersion": "serving.kserve.io/v1alpha1",
            "kind": "ServingRuntime",
            "metadata": {"name": called, "namespace": namespace},
            "spec": runtime,
        },
        service={
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {"kdeploy.dev/release": release},
            },
            "spec": {"predictor": predictor},
        },
    )


def want(record: Record | None, bundle: Bundle, now: str = "2026-01-01T00:00:00Z") -> Record:
    """Make a bundle the wanted state of a record."""
    assert bundle.runtime
    return set_desired(record, bundle.service, bundle.runtime, now)
