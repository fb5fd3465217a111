"""`kdeploy` with a real TorchServe, and requests through the ingress."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import urllib3
import yaml

from deployer.journal import Entry, Outcome
from deployer.manifest import render_runtime
from deployer.observed import Observed, Phase
from tests.stores.planted import MARK, contents, holders

from .conftest import Project

pytestmark = [pytest.mark.torchserve, pytest.mark.long]

V1 = "/v1/models/digits:predict"


def endpoint(project: Project) -> tuple[str, str]:
    url = json.loads(project.run("local", "status", "-o", "json").stdout)["ingress"]
    host = json.loads(project.run("status", "-o", "json").stdout)["url"].removeprefix("http://")
    return url, host


@pytest.fixture(scope="module")
def example(trained: Path) -> ModuleType:
    sys.path.insert(0, str(trained))
    try:
        import train  # type: ignore[import-not-found]

        return train
    finally:
        sys.path.remove(str(trained))


def test_predictions_equal_those_of_the_same_weights_in_process(
    served: Project, trained: Path, example: ModuleType
) -> None:
    import numpy as np
    import torch

    _, scans, _, digits = example.split_scans()
    network = example.DigitsNet()
    network.load_state_dict(torch.load(trained / "digits.pt", weights_only=True))
    with torch.inference_mode():
        in_process = network.eval()(torch.from_numpy(scans)).argmax(1).tolist()
    url, host = endpoint(served)
    pool = urllib3.PoolManager(maxsize=8, headers={"Host": host})

    def ask(scan: Any) -> int:
        data = base64.b64encode(example.png(example.picture(scan))).decode()
        answer = pool.request("POST", url + V1, json={"instances": [{"data": data}]}, retries=False)
        assert answer.status == 200, answer.data
        return int(answer.json()["predictions"][0]["digit"])

    with ThreadPoolExecutor(8) as threads:
        through_ingress = list(threads.map(ask, scans))
    assert len(through_ingress) == 599
    assert through_ingress == in_process
    assert np.mean(np.asarray(through_ingress) == digits) >= 0.97


def test_2000_requests_of_16_clients_succeed(served: Project) -> None:
    url, host = endpoint(served)
    samples = sorted((served.folder / "samples").glob("*.png"))
    assert len(samples) == 10
    bodies = [
        (
            int(path.name[0]),
            json.dumps({"instances": [{"data": base64.b64encode(path.read_bytes()).decode()}]}),
        )
        for path in samples
    ]
    headers = {"Host": host, "Content-Type": "application/json"}
    pool = urllib3.PoolManager(maxsize=16, headers=headers)

    def ask(number: int) -> bool:
        digit, body = bodies[number % len(bodies)]
        answer = pool.request("POST", url + V1, body=body, retries=False)
        return answer.status == 200 and answer.json()["predictions"][0]["digit"] == digit

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(ask, range(2000)))


@pytest.mark.parametrize("flags", [["--kserve"], [], ["--protocol", "v2"], ["--kserve", "--protocol", "v2"]])
def test_predict_with_every_protocol(served: Project, flags: list[str]) -> None:
    samples = [f"samples/{digit}-0.png" for digit in range(10)]
    answers = json.loads(served.run("predict", *flags, *samples, "-o", "json").stdout)
    assert [answer["image"] for answer in answers] == samples
    for digit, answer in enumerate(answers):
        value = answer["prediction"]
        assert (json.loads(value) if isinstance(value, str) else value)["digit"] == digit


def test_predict_prints_one_line_per_image(served: Project) -> None:
    out = served.run("predict", "--kserve", "samples/3-0.png", "samples/4-0.png").stdout.splitlines()
    assert [line.split()[0] for line in out] == ["samples/3-0.png", "samples/4-0.png"]
    assert '"digit": 3' in out[0]


def test_an_invalid_image_does_not_affect_the_others(served: Project) -> None:
    (served.folder / "bad.png").write_bytes(b"no picture")
    ended = served.run("predict", "--kserve", "samples/3-0.png", "bad.png", "samples/4-0.png", code=10)
    assert ended.stdout.count('"digit"') == 2
    assert "bad.png" in ended.stderr


def test_a_request_for_another_host_is_not_found(served: Project) -> None:
    url, _ = endpoint(served)
    answer = urllib3.request("POST", url + V1, json={}, headers={"Host": "other.example.com"})
    assert answer.status == 404


def test_status_list_and_logs(served: Project) -> None:
    release = served.run("releases", "-o", "name").stdout.split()[-1]
    assert f"100% {release}" in served.run("status").stdout
    assert release in served.run("list").stdout
    assert served.run("list", "-o", "name").stdout == "digits\n"
    assert "Model server started" in served.run("logs").stdout or served.run("logs").stdout


def curl(shown: str) -> subprocess.CompletedProcess[str]:
    """Run the curl line that a command printed, as printed."""
    (line,) = [line for line in shown.splitlines() if line.startswith("  curl ")]
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)


def test_the_curl_line_of_status_works_as_printed(served: Project) -> None:
    shown = served.run("status").stdout
    (prediction,) = json.loads(curl(shown).stdout)["predictions"]
    assert set(prediction) >= {"digit", "word"}
    assert ", with the header Host: digits.default.example.com:\n" in shown


def test_commands_on_a_terminal_end_with_the_next_step(served: Project, tmp_path: Path) -> None:
    push = served.on_terminal("push", "--target=local").splitlines()
    assert push[-1] == "next: run `kdeploy rollout --target=local` to roll out the release"
    shown = served.on_terminal("rollout")
    assert "digit" in curl(shown).stdout
    assert shown.splitlines()[-1] == "next: run `kdeploy predict FILE` to send a prediction request"
    shown = served.on_terminal("status", "digits")
    assert "digit" in curl(shown).stdout
    assert shown.splitlines()[-1] == (
        "next: run `kdeploy predict FILE --service=digits` to send a prediction request"
    )
    for arguments in (("push",), ("rollout",), ("status",)):
        assert "next:" not in served.on_terminal(*arguments, "-o", "json")
        assert "next:" not in served.run(*arguments).stderr


def test_status_prints_the_observed_state_as_json_and_the_service_as_yaml(served: Project) -> None:
    release = served.run("push").stdout.strip()
    data = json.loads(served.run("status", "-o", "json").stdout)
    assert data.pop("drift") == []
    observed = msgspec.convert(data, Observed)
    assert json.loads(msgspec.json.encode(observed)) == data  # and nothing else
    assert (observed.phase, observed.wanted, observed.stable) == (Phase.READY, release, release)
    assert (observed.candidate, observed.percent, observed.serving) == (None, 100, release)
    assert [(one.release, one.ready, one.pods) for one in observed.revisions] == [(release, 1, 1)]
    document = yaml.safe_load(served.run("status", "-o", "yaml").stdout)
    assert document["kind"] == "InferenceService"
    assert set(document) == {"apiVersion", "kind", "metadata", "spec", "status"}
    assert document["status"]["url"] == observed.url
    assert document["metadata"]["labels"]["kdeploy.dev/release"] == release
    [listed] = json.loads(served.run("list", "-o", "json").stdout)
    assert listed == data


def test_scaling_keeps_the_release_and_restarts_no_process(served: Project) -> None:
    def running() -> list[tuple[str, int, str]]:
        info = json.loads(served.run("local", "status", "-o", "json").stdout)
        return [(one["name"], one["pid"], one["release"]) for one in info["services"][0]["revisions"]]

    before, release = running(), served.run("push").stdout.strip()
    scaled = ["scaling.min-replicas=2", "scaling.max-replicas=3"]
    assert served.run("push", sets=scaled).stdout.strip() == release
    assert "+    minReplicas: 2" in served.run("diff", sets=scaled, code=15).stdout
    for sets, bounds in ((scaled, "2 to 3"), ([], "1 to 1")):
        ended = served.run("rollout", sets=sets)
        assert ended.stdout.strip() == release
        assert "unchanged: release" in ended.stderr  # in the model store
        assert "unchanged: default/digits" not in ended.stderr
        assert bounds in served.run("status").stdout
        assert running() == before
    entries = json.loads(served.run("rollout", "history", "-o", "json").stdout)
    assert [entry["outcome"] for entry in entries[-2:]] == ["Ready", "Ready"]
    assert {entry["release"] for entry in entries} == {release}


def test_a_server_dry_run_changes_nothing(served: Project) -> None:
    release = served.run("push").stdout.strip()
    before = served.run("rollout", "history", "-o", "json").stdout
    for sets in ([], ["serving.batch-size=2"]):
        shown = served.run("rollout", "--dry-run=server", "-o", "yaml", sets=sets).stdout
        assert shown == served.run("rollout", "--dry-run=client", "-o", "yaml", sets=sets).stdout
        runtime, service = yaml.safe_load_all(shown)
        assert (runtime["kind"], service["kind"]) == ("ServingRuntime", "InferenceService")
        assert (service["metadata"]["labels"]["kdeploy.dev/release"] == release) is not bool(sets)
    assert served.run("rollout", "history", "-o", "json").stdout == before
    assert f"100% {release}" in served.run("status").stdout
    assert served.run("releases", "-o", "name").stdout.split() == [release]


def test_the_history_lists_every_rollout(served: Project) -> None:
    release = served.run("push").stdout.strip()
    entries = msgspec.json.decode(
        served.run("rollout", "history", "-o", "json").stdout.encode(), type=list[Entry]
    )
    first = entries[0]
    assert (first.number, first.release, first.strategy, first.outcome) == (
        1,
        release,
        "rolling",
        Outcome.READY,
    )
    assert first.bundle
    assert (first.bundle.release, first.bundle.secret) == (release, None)
    assert [event.outcome for event in first.events] == [Outcome.APPLIED, Outcome.READY]
    lines = served.run("rollout", "history").stdout.splitlines()
    assert lines[0].split() == ["NUMBER", "RELEASE", "TRAFFIC", "WHEN", "WHO", "COMMIT", "OUTCOME"]
    assert lines[1].split()[:3] == ["1", release, "100%"]
    assert lines[1].endswith("Ready")
    assert len(lines) == len(entries) + 1


def test_models_uses_the_management_api(served: Project) -> None:
    assert served.run("models", "list", "-o", "name").stdout == "digits\n"
    (version,) = json.loads(served.run("models", "describe", "digits", "-o", "json").stdout)
    assert version["batchSize"] == 8
    assert [worker["status"] for worker in version["workers"]] == ["READY"]
    served.run("models", "scale", "digits", "--min-workers", "1", "--max-workers", "1")
    missing = served.run("models", "describe", "no-such", code=11)
    assert "no-such" in missing.stderr


def test_a_second_push_and_rollout_change_nothing(served: Project) -> None:
    store = served.folder / "model-store"
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    pushed = served.run("push")
    assert "unchanged" in pushed.stderr
    rolled = served.run("rollout")
    assert "unchanged: default/digits is Ready" in rolled.stderr
    assert rolled.stdout == pushed.stdout
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()} == before


def test_plan_and_render_name_the_serving_release(served: Project) -> None:
    release = served.run("push").stdout.strip()
    plan = json.loads(served.run("plan", "-o", "json").stdout)
    assert plan["release"]["id"] == plan["serving"] == release
    assert plan["stored"] is True
    other = json.loads(served.run("plan", "-o", "json", sets=["serving.batch-size=2"]).stdout)
    assert other["release"]["id"] != release
    assert other["stored"] is False
    assert "kind: InferenceService" in served.run("render").stdout
    assert release in served.run("render", "--release", release).stdout


def test_requirements_are_installed_for_the_model_only(served: Project) -> None:
    answer = json.loads(served.run("predict", "samples/7-0.png", "-o", "json").stdout)
    assert answer[0]["prediction"]["word"] == "seven"
    with pytest.raises(ImportError):
        import humanize  # type: ignore[import-not-found] # noqa: F401


def test_the_readiness_probe_needs_a_ready_worker(served: Project) -> None:
    script = render_runtime()["containers"][0]["readinessProbe"]["exec"]["command"][2]
    assert script.count("missing(8081)") == 1
    info = json.loads(served.run("local", "status", "-o", "json").stdout)
    management = info["services"][0]["revisions"][0]["management"].rpartition(":")[2]
    ready = script.replace("missing(8081)", f"missing({management})")
    assert subprocess.run([sys.executable, "-c", ready], check=False).returncode == 0
    served.run("models", "scale", "digits", "--min-workers", "0", "--max-workers", "0")
    try:
        lost = subprocess.run([sys.executable, "-c", ready], capture_output=True, text=True, check=False)
        assert (lost.returncode, lost.stderr) == (1, "model digits has no READY worker\n")
    finally:
        served.run("models", "scale", "digits", "--min-workers", "1", "--max-workers", "1")
    script = script.replace("missing(8081)", "missing(1)")
    deaf = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert deaf.returncode == 1
    assert "does not answer" in deaf.stderr


def test_prune_keeps_the_serving_release(served: Project) -> None:
    serving = served.run("push").stdout.strip()
    made = [served.run("push", sets=[f"serving.max-batch-delay={n}"]).stdout.strip() for n in (61, 62, 63)]
    assert "younger than 1h" in served.run("prune", "--keep", "1", "--yes").stderr
    other = ["targets.staging.kind=local", "targets.staging.state=.kdeploy/staging"]
    prune = ("prune", "--target", "staging", "--keep", "1", "--min-age", "0s")
    ended = served.run(*prune, "--dry-run", sets=other)
    assert ended.stdout.split() == made[:2]
    assert [line.split()[0] for line in ended.stderr.splitlines()[1:]] == made[:2]
    assert "--yes" in served.run(*prune, sets=other, code=3).stderr
    broken = ["targets.staging.kind=kserve", "targets.staging.kubeconfig=no-such-file"]
    assert "--ignore-target staging" in served.run(*prune, "--yes", sets=broken, code=7).stderr
    unknown = served.run(*prune, "--yes", "--ignore-target", "x", sets=other, code=3)
    assert "unknown target 'x'" in unknown.stderr
    assert "hint: Use one of: local, staging." in unknown.stderr
    assert served.run("releases", "-o", "name").stdout.split() == [serving, *made]
    ignored = served.run(*prune, "--yes", "--ignore-target", "staging", sets=broken)
    assert ignored.stdout.split() == made[:2]
    assert set(served.run("releases", "-o", "name").stdout.split()) == {serving, made[2]}


def test_no_file_log_or_response_contains_a_secret_of_the_environment(served: Project) -> None:
    shown = [served.run("status", "-o", "json"), served.run("logs"), served.run("local", "logs")]
    texts = {str(one.args): (one.stdout + one.stderr).encode() for one in shown}
    assert holders(texts | contents(served.folder), MARK) == []
