"""Real TorchServes behind the ingress: rollouts, canaries, rollouts under load, and failures."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from deployer.errors import NotFoundError, TargetError
from deployer.observed import Phase, Reference
from deployer.targets.protocols import Endpoint, Via
from tests.local.client import Client, Load
from tests.local.releases import (
    ANSWER,
    DRAIN,
    IMPORTS_A_MISSING_MODULE,
    RAISES,
    make_bundle,
    make_noisy_package,
    make_release,
)

pytestmark = [pytest.mark.torchserve, pytest.mark.long]

DEMO = Reference("default", "demo")
A, B = "1.0-aaaaaaaaaaaa", "1.0-bbbbbbbbbbbb"


@pytest.fixture(scope="module")
def demo(client: Client, store: Path) -> Client:
    os.environ["PIP_NO_INDEX"] = "1"  # the supervisor and pip inherit it
    try:
        status = client.rollout("demo", A, store / "a")
    finally:
        del os.environ["PIP_NO_INDEX"]
    assert status.phase is Phase.READY
    return client


@pytest.fixture
def on_a(demo: Client, store: Path) -> Client:
    """A service whose release A gets all traffic."""
    status = demo.rollout("demo", A, store / "a")
    assert [(share.release, share.percent) for share in status.traffic] == [(A, 100)]
    return demo


def test_a_release_answers_to_both_of_its_hosts_and_no_other(on_a: Client) -> None:
    body = {"instances": [1]}
    for host in ("demo.default.example.com", "DEMO.default.svc.cluster.local:8081"):
        for path in ("/v1/models/demo:predict", "/v2/models/demo/infer", "/predictions/demo"):
            assert on_a.ask(path, body, host=host) == (200, {"release": "a", "mode": ""})
    status, answer = on_a.ask("/predictions/demo", host="other.default.example.com")
    assert status == 404
    assert "demo.default.example.com" in answer["hosts"]


def test_info_has_the_urls_and_the_ingress_does_not_forward_the_management_api(on_a: Client) -> None:
    info = on_a.node.info()
    [revision] = info.services[0].revisions
    assert (revision.release, revision.percent, revision.ready) == (A, 100, True)
    assert on_a.target.reach.endpoint(DEMO, Via.MANAGEMENT).url == revision.management
    assert on_a.target.reach.endpoint(DEMO, Via.DIRECT).url == revision.inference
    assert on_a.ask("/models")[0] in (404, 405)
    assert any("MODEL_LOG" in line for line in on_a.target.reach.logs(DEMO))
    assert on_a.target.services.releases_in_use() == {f"demo/{A}"}


def test_the_release_folder_is_only_read(on_a: Client, store: Path) -> None:
    files = sorted(str(path.relative_to(store / "a")) for path in (store / "a").rglob("*"))
    assert files == ["config", "config/config.properties", "model-store", "model-store/demo.mar"]


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_body_over_the_releases_limit_gets_a_413_with_the_key(on_a: Client, chunked: bool) -> None:
    def ask(size: int) -> tuple[int, str]:
        body = b'{"data": "%b"}' % (b"x" * (size - len('{"data": ""}')))
        blocks = (body[start : start + 65_536] for start in range(0, size, 65_536))
        address = (on_a.node.info().ingress or "").removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=60)
        headers = {"Host": "demo.default.example.com", "Content-Type": "application/json"}
        try:
            connection.request("POST", "/predictions/demo", blocks if chunked else body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    assert ask(1_000_000)[0] == 200  # the limit in releases.py
    for size in (1_000_001, 50_000_000):
        status, text = ask(size)
        assert status == 413
        assert "serving.max-request-size" in json.loads(text)["error"]


def test_a_canary_gets_exactly_its_percentage_and_its_promotion_starts_no_process(
    on_a: Client, store: Path
) -> None:
    status = on_a.rollout("demo", B, store / "b", canary=10)
    assert [(s.release, s.percent) for s in status.traffic] == [(B, 10), (A, 90)]
    answers = Counter(on_a.ask("/predictions/demo")[1]["release"] for _ in range(100))
    assert answers == {"a": 90, "b": 10}
    before = {r.pid for r in on_a.node.info().services[0].revisions}
    status = on_a.rollout("demo", B, store / "b")
    assert [(s.release, s.percent) for s in status.traffic] == [(B, 100)]
    [serving] = [r for r in on_a.node.info().services[0].revisions if not r.draining]
    assert serving.pid in before


def ask_at(way: Endpoint, method: str = "POST", path: str = "/predictions/demo") -> tuple[int, str]:
    """Send a request to an endpoint; return the status and the body."""
    connection = http.client.HTTPConnection(way.url.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, b"{}", {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("percent", [0, 10])
def test_one_release_can_be_reached_at_any_percentage(on_a: Client, store: Path, percent: int) -> None:
    reach = on_a.target.reach
    status = on_a.rollout("demo", B, store / "b", canary=percent)
    assert (status.phase, status.wanted, status.candidate, status.stable) == (Phase.READY, B, B, A)
    assert {s.release: s.percent for s in status.traffic} == {B: percent, A: 100 - percent}
    assert [(r.release, r.ready, r.pods) for r in status.revisions] == [(A, 1, 1), (B, 1, 1)]
    for release, name in ((B, "b"), (A, "a")):
        for via in (Via.INGRESS, Via.DIRECT):
            endpoint = reach.endpoint(DEMO, via, release=release)
            for _ in range(5):  # the split would send some of them to the other release
                code, body = ask_at(endpoint)
                assert (code, json.loads(body)["release"]) == (200, name)
        code, models = ask_at(reach.endpoint(DEMO, Via.MANAGEMENT, release=release), "GET", "/models/demo")
        assert (code, json.loads(models)[0]["workers"][0]["status"]) == (200, "READY")
    assert reach.endpoint(DEMO, Via.DIRECT) == reach.endpoint(
        DEMO, Via.DIRECT, release=A
    )  # it has the most traffic
    answers = Counter(on_a.ask("/predictions/demo")[1]["release"] for _ in range(100))
    assert answers == Counter({"a": 100 - percent, "b": percent})
    with pytest.raises(NotFoundError, match="release unknown of default/demo not found"):
        reach.endpoint(DEMO, release="unknown")
    with pytest.raises(NotFoundError):
        reach.endpoint(Reference("default", "other"), release=A)


def test_the_metrics_of_a_release_count_its_requests(on_a: Client, store: Path) -> None:
    on_a.rollout("demo", B, store / "b", canary=0)

    def count(release: str | None) -> float:
        endpoint = on_a.target.reach.endpoint(DEMO, Via.METRICS, release=release)
        code, text = ask_at(endpoint, "GET", "/metrics")
        assert code == 200
        found = re.findall(
            r'^ts_inference_requests_total\{.*model_name="demo".*\} (\S+)$', text, re.MULTILINE
        )
        return sum(map(float, found))

    before, idle = count(A), count(B)
    assert count(None) == before  # those of the release with the most traffic
    for _ in range(7):
        assert on_a.ask("/predictions/demo")[0] == 200
    assert (count(A) - before, count(B) - idle) == (7, 0)


def test_scaling_restarts_no_process_and_creates_no_revision(on_a: Client, store: Path) -> None:
    def running() -> list[tuple[str, int | None]]:
        return [(r.name, r.pid) for r in on_a.node.info().services[0].revisions if not r.draining]

    before = running()
    status = on_a.rollout("demo", A, store / "a", replicas=3)
    assert (status.phase, status.wanted) == (Phase.READY, A)
    assert on_a.live(DEMO).document["spec"]["predictor"]["minReplicas"] == 3
    assert running() == before


def test_rollouts_lose_no_request(on_a: Client, store: Path) -> None:
    with Load(on_a) as load:
        load.wait_for(25)
        for release, folder in ((B, store / "b"), (A, store / "a")):
            status = on_a.rollout("demo", release, folder)
            assert [(s.release, s.percent) for s in status.traffic] == [(release, 100)]
            load.wait_for(25)
    assert load.statuses() == {200: len(load.answers)}
    assert {answer["release"] for _, answer in load.answers} == {"a", "b"}


def test_the_old_release_answers_its_requests_in_flight_and_then_ends(on_a: Client, store: Path) -> None:
    [revision] = [r for r in on_a.node.info().services[0].revisions if not r.draining]
    old = psutil.Process(revision.pid)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(on_a.ask, "/predictions/demo", {"sleep": 10})
        status = on_a.rollout("demo", B, store / "b")
        replaced = time.monotonic()
        assert [(s.release, s.percent) for s in status.traffic] == [(B, 100)]
        assert slow.result() == (200, {"release": "a", "mode": ""})
    last = max(time.monotonic(), replaced + DRAIN)
    old.wait(60)
    assert time.monotonic() - last < 1.0
    assert len(on_a.java()) == 1


@pytest.mark.parametrize("victim", ["first process", "launcher", "JVM"])
def test_a_killed_torchserve_restarts_and_requests_get_the_reason_meanwhile(
    on_a: Client, victim: str
) -> None:
    [revision] = [r for r in on_a.node.info().services[0].revisions if not r.draining]
    line = [psutil.Process(revision.pid)]
    for _ in range(2):
        line += line[-1].children()
    process = dict(zip(["first process", "launcher", "JVM"], line, strict=True))[victim]
    with Load(on_a) as load:
        load.wait_for(10)
        process.kill()
        end = time.monotonic() + 60  # the killed one can count as ready until the next probe
        while revision.pid in {r.pid for r in on_a.node.info().services[0].revisions}:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert on_a.wait(DEMO).phase is Phase.READY
        load.wait_for(10)
    assert set(load.statuses()) == {200, 503}
    reasons = {answer["error"] for code, answer in load.answers if code == 503}
    known = r"is not ready: \w|ended (while|during|before) |does not (answer|listen): it is "
    assert [reason for reason in reasons if not re.search(known, reason)] == []
    assert load.answers[-1][0] == 200
    assert not any(one.is_running() for one in line)


def test_requests_get_a_503_until_torchserve_replaces_a_dead_worker(on_a: Client) -> None:
    assert on_a.ask("/predictions/demo", {"die": True})[0] >= 500
    for _ in range(100):
        status, answer = on_a.ask("/predictions/demo")
        if status == 200:
            break
        assert status == 503
        assert answer
    assert status == 200


@pytest.mark.parametrize(
    ("name", "handler", "requirements", "reason"),
    [
        (
            "imports",
            IMPORTS_A_MISSING_MODULE,
            None,
            "No module named 'no_such_module' (handler.py, line 1)",
        ),
        ("raises", RAISES, None, "ValueError: the weights have another shape (handler.py, line 4)"),
        (
            "pip",
            ANSWER.format(release="p"),
            "no-such-package\n",
            "satisfies the requirement no-such-package",
        ),
    ],
    ids=["imports", "raises", "pip"],
)
def test_a_release_that_cannot_load_gets_no_traffic_and_reports_the_reason(
    on_a: Client, tmp_path: Path, name: str, handler: str, requirements: str | None, reason: str
) -> None:
    bad = make_release(tmp_path / name, "demo", handler, requirements=requirements)
    with Load(on_a, rate=20) as load:
        status = on_a.rollout("demo", f"1.0-{name}", bad)
    assert status.phase is Phase.FAILED
    assert reason in status.message
    assert [(share.release, share.percent) for share in status.traffic] == [(A, 100)]
    assert {(code, answer["release"]) for code, answer in load.answers} == {(200, "a")}
    assert on_a.live(DEMO).document["status"]["modelStatus"]["lastFailureInfo"]["reason"] == "ModelLoadFailed"
    lines = list(on_a.target.reach.logs(DEMO))
    assert any(line.startswith(f"[{status.traffic[0].revision}] ") for line in lines)


def test_requirements_whose_build_prints_more_than_a_pipe_holds_are_installed(
    on_a: Client, tmp_path: Path
) -> None:
    package = make_noisy_package(tmp_path / "noisy")
    handler = "import noisy\n" + ANSWER.format(release="noisy")
    release = make_release(tmp_path / "n", "demo", handler, requirements=f"noisy @ {package.as_uri()}\n")
    status = on_a.rollout("demo", "1.0-noisy", release)
    assert status.phase is Phase.READY, status.message
    assert on_a.ask("/predictions/demo")[1]["release"] == "noisy"
    revision = on_a.node.info().services[0].revisions[0].name
    log = on_a.state / "local" / "logs" / f"default.{revision}" / "pip.log"
    assert log.stat().st_size > 64 << 10


def test_the_services_environment_variables_reach_the_handler(demo: Client, store: Path) -> None:
    assert demo.rollout("demo", A, store / "a", env={"MODE": "tést"}).phase is Phase.READY
    assert demo.ask("/predictions/demo")[1] == {"release": "a", "mode": "tést"}


def test_a_variable_of_a_secret_is_taken_from_the_command_and_not_stored(
    demo: Client, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"secretKeyRef": {"name": "hf", "key": "token"}}
    bundle = make_bundle("demo", A, store / "a", env={"MODE": source})
    [unset] = demo.target.services.check(bundle)
    assert (unset.status, unset.where) == ("failure", "serving.env.MODE")
    monkeypatch.setenv("MODE", "planted-value")
    assert demo.target.services.check(bundle) == []
    status = demo.rollout("demo", A, store / "a", env={"MODE": source})
    assert status.phase is Phase.READY
    assert demo.ask("/predictions/demo", {})[1] == {"release": "a", "mode": "planted-value"}
    files = [path for path in demo.state.rglob("*") if path.is_file()]
    assert files
    assert not any(b"planted-value" in path.read_bytes() for path in files)


def test_a_bundle_that_cannot_be_served_is_refused_and_changes_nothing(on_a: Client, tmp_path: Path) -> None:
    bundle = make_bundle("demo", B, tmp_path)
    bundle.service["spec"]["predictor"]["model"]["storageUri"] = "s3://bucket/demo/"
    with pytest.raises(TargetError, match="cannot serve s3://bucket/demo/: not a folder"):
        on_a.target.services.check(bundle)
    with pytest.raises(TargetError, match="cannot serve s3://bucket/demo/: not a folder"):
        on_a.apply(bundle)
    status = on_a.wait(DEMO)
    assert status.wanted == A
    assert on_a.rollout("demo", B, tmp_path / "gone").phase is Phase.FAILED


def test_a_deleted_service_leaves_no_files(demo: Client, store: Path) -> None:
    other, services = Reference("default", "other"), demo.target.services
    demo.apply(make_bundle("other", A, store / "a"))
    assert services.delete(other) == ()
    assert services.delete(other) is None
    assert services.get(other) is None
    with pytest.raises(NotFoundError):
        next(services.watch(other, 1.0))
    assert list((demo.state / "local").rglob("*other*")) == []
    assert [status.reference.name for status in services.list_all()] == ["demo"]


def test_a_rollout_while_a_service_of_the_same_name_is_deleted_keeps_its_logs(
    demo: Client, store: Path
) -> None:
    again, services = Reference("default", "again"), demo.target.services
    assert demo.rollout("again", A, store / "a").phase is Phase.READY
    with ThreadPoolExecutor() as pool:
        host = "again.default.example.com"
        slow = pool.submit(demo.ask, "/predictions/demo", {"sleep": 3}, host=host)
        time.sleep(1.0)  # the delete waits for this request
        deletion = pool.submit(services.delete, again)
        while services.get(again):
            time.sleep(0.02)
        assert demo.rollout("again", A, store / "a").phase is Phase.READY
        assert (slow.result()[0], deletion.result()) == (200, ())
    logs = list(demo.target.reach.logs(again))
    assert any("worker" in line.lower() for line in logs)
    assert services.delete(again) == ()
