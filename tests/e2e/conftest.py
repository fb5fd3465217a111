"""A real cluster, named by KDEPLOY_E2E_CONTEXT; a namespace of its own, which alone is deleted.

KDEPLOY_E2E_CONTEXT          the kubeconfig's context (required)
KDEPLOY_E2E_STORE            the model store: s3://bucket/prefix, gs://, az:// or pvc://claim/path (required)
KDEPLOY_E2E_STORE_ENDPOINT   an S3-compatible server; credentials come from the environment, as for kdeploy
KDEPLOY_E2E_IMAGE            TorchServe's image; default: kdeploy's
KDEPLOY_E2E_GATEWAY          the gateway's address, http://HOST:PORT; default: found, or a port-forward
KDEPLOY_E2E_CPU, _MEMORY     what one pod asks for; default: 500m and 1Gi
KDEPLOY_E2E_TIMEOUT          how long a rollout may take; default: 5m
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.project import Project

CONTEXT = "KDEPLOY_E2E_CONTEXT"


def pytest_configure() -> None:
    for name in (CONTEXT, "KDEPLOY_E2E_STORE"):
        if not os.environ.get(name):
            pytest.exit(f"{name} is not set: see tests/e2e/conftest.py", returncode=2)


@pytest.fixture(scope="session")
def core() -> Any:
    """The Kubernetes client's own core API: a second opinion on what kdeploy did."""
    from kubernetes import client, config

    return client.CoreV1Api(config.new_client_from_config(context=os.environ[CONTEXT]))


@pytest.fixture(scope="session")
def namespace(core: Any) -> Iterator[str]:
    name = f"kdeploy-e2e-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    try:
        yield name
    finally:
        core.delete_namespace(name)


@pytest.fixture(scope="session")
def project(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("e2e"), namespace, os.environ)
