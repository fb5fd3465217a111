"""What users set, on a real cluster: a service's name, warm-up, the user of pods, replicas; and adopt.

The tests run in order, and each continues from the state of the last.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tomli

from deployer.observed import Reference
from tests.e2e.project import Load, Project, predict

pytestmark = pytest.mark.timeout(1200)

USER = 1_000_650_000  # a user that no image knows
LABEL = "serving.kserve.io/inferenceservice={},component=predictor"
AS_USER = f"""import os, pathlib
        assert (os.getuid(), os.getgid()) == ({USER}, 0)
        (pathlib.Path.home() / "cache").write_text("x")"""


def pods(project: Project, core: Any, service: str = "e2e") -> list[Any]:
    """Return the pods of a service that are not being deleted."""
    selector = LABEL.format(service)
    found = core.list_namespaced_pod(project.reference.namespace, label_selector=selector).items
    return [pod for pod in found if not pod.metadata.deletion_timestamp]


def test_a_service_has_another_name_than_the_model(project: Project, core: Any) -> None:
    project.write("20")
    ended = project.rollout("--service", "e2e-other")
    assert ended.code == 0, ended.err
    assert pods(project, core, "e2e-other")
    other = Reference(project.reference.namespace, "e2e-other")
    assert project.cluster.services.get(other)
    asked = project.folder / "request.json"
    asked.write_text(json.dumps({"instances": ["x"]}))
    ended = project.run("predict", "--service", "e2e-other", "--kserve", str(asked), "-o", "json")
    assert ended.code == 0, ended.err
    assert '"20"' in ended.out
    assert project.run("delete", "e2e-other", "--yes").code == 0


def test_a_worker_answers_the_warm_up_samples_before_it_is_ready(project: Project) -> None:
    project.write("21")
    samples = project.folder / "samples"
    samples.mkdir()
    (samples / "slow.json").write_text(json.dumps({"instances": [{"sleep": 5}]}))
    ended = project.rollout("--set", 'serving.warm-up=["samples/*.json"]')
    assert ended.code == 0, ended.err
    assert "Warm-up sample slow.json took 5" in project.run("logs").out
    began = time.monotonic()
    assert predict(project, "x")[0] == 200
    assert time.monotonic() - began < 5


def test_pods_run_as_a_user_that_the_image_does_not_know(project: Project, core: Any) -> None:
    project.write("22", initialize=AS_USER, requirements="packaging\n")
    chosen = ("--set", f"targets.e2e.run-as-user={USER}")
    ended = project.rollout(*chosen)
    assert ended.code == 0, ended.err
    for pod in pods(project, core):
        [container] = [one for one in pod.spec.containers if one.name == "kserve-container"]
        assert container.security_context.run_as_user == USER
        assert container.security_context.run_as_non_root
    assert predict(project, "x") == (200, {"predictions": [{"marker": "22"}]})
    assert project.run("diff", *chosen).code == 0


def test_a_second_replica_restarts_no_pod_and_brings_a_disruption_budget(project: Project, core: Any) -> None:
    """In Knative mode, KServe makes a new revision of the same release."""
    from kubernetes import client

    policy = client.PolicyV1Api(core.api_client)
    chosen = ("--set", f"targets.e2e.run-as-user={USER}")
    before = {pod.metadata.uid for pod in pods(project, core)}
    several = (*chosen, "--set", "scaling.max-replicas=2")
    with Load(project.endpoint()) as load:
        assert project.rollout(*several).code == 0
    assert load.failures == []
    if project.mode == "Standard":
        assert before <= {pod.metadata.uid for pod in pods(project, core)}
    [budget] = policy.list_namespaced_pod_disruption_budget(project.reference.namespace).items
    assert (budget.metadata.name, budget.spec.max_unavailable) == ("e2e-kdeploy", 1)
    assert project.rollout(*chosen).code == 0
    assert policy.list_namespaced_pod_disruption_budget(project.reference.namespace).items == []


def test_a_service_is_adopted_without_a_change(project: Project, tmp_path: Path) -> None:
    live = project.cluster.services.get(project.reference)
    assert live
    context, namespace = project.cluster.config.context, project.reference.namespace
    ended = project.run(
        *("adopt", "e2e", "--namespace", namespace, "--context", str(context), "--dry-run"),
        folder=tmp_path,
    )
    assert ended.code == 0, ended.err
    written = tomli.loads(ended.out)
    assert written["targets"]["cluster"]["namespace"] == namespace
    after = project.cluster.services.get(project.reference)
    assert after
    assert after.document["metadata"]["generation"] == live.document["metadata"]["generation"]


def test_the_service_is_deleted(project: Project) -> None:
    assert project.run("delete", "--yes").code == 0
