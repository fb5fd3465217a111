"""Tests on a real cluster, in a new namespace that they delete at the end.

KDEPLOY_E2E_CONTEXT          context in the kubeconfig (required)
KDEPLOY_E2E_STORE            model store: s3://bucket/prefix, gs://, az:// or pvc://claim/path (required)
KDEPLOY_E2E_STORE_ENDPOINT   S3-compatible server; kdeploy reads its credentials from the environment
KDEPLOY_E2E_STORE_CLUSTER_ENDPOINT   the address of this server that pods use, if it is another one
KDEPLOY_E2E_IMAGE            TorchServe image; default: kdeploy's
KDEPLOY_E2E_GATEWAY          address of the gateway, http://HOST:PORT; default: detected, or a port-forward
KDEPLOY_E2E_CPU, _MEMORY     resources of one pod; default: 500m and 1Gi
KDEPLOY_E2E_TIMEOUT          time limit of a rollout; default: 5m
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
    """The Kubernetes client's core API, for checks that are independent of kdeploy."""
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
