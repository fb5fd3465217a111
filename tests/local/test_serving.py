"""A real TorchServe behind the ingress: rolled out, split, switched under load, and failing rightly."""

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
    IMPORTS_WHAT_IS_NOT_THERE,
    RAISES,
    make_bundle,
    make_noisy_package,
    make_release,
)

pytestmark = pytest.mark.torchserve

DEMO = Reference("default", "demo")
A, B = "1.0-aaaaaaaaaaaa", "1.0-bbbbbbbbbbbb"


@pytest.fixture(scope="module")
def demo(client: Client, store: Path) -> Client:
    os.environ["PIP_NO_INDEX"] = "1"  # the supervisor, and so pip, inherit it
    try:
        status = client.rollout("demo", A, store / "a")
    finally:
        del os.environ["PIP_NO_INDEX"]
    assert status.phase is Phase.READY
    return client


@pytest.fixture
def on_a(demo: Client, store: Path) -> Client:
    """Release A gets everything, whatever the test before has done."""
    status = demo.rollout("demo", A, store / "a")
    assert [(share.release, share.percent) for share in status.traffic] == [(A, 100)]
    return demo


def test_a_release_is_served_behind_both_of_its_hosts_and_no_other(on_a: Client) -> None:
    body = {"instances": [1]}
    for host in ("demo.default.example.com", "DEMO.default.svc.cluster.local:8081"):
        for path in ("/v1/models/demo:predict", "/v2/models/demo/infer", "/predictions/demo"):
            assert on_a.ask(path, body, host=host) == (200, {"release": "a", "mode": ""})
    status, answer = on_a.ask("/predictions/demo", host="other.default.example.com")
    assert status == 404
    assert "demo.default.example.com" in answer["hosts"]


def test_what_runs_is_told_with_its_ports_and_the_management_api_is_not_on_the_ingress(on_a: Client) -> None:
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
def test_a_body_over_the_releases_limit_is_413_and_names_the_key(on_a: Client, chunked: bool) -> None:
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

    assert ask(1_000_000)[0] == 200  # releases.py's limit
    for size in (1_000_001, 50_000_000):
        status, text = ask(size)
        assert status == 413
        assert "serving.max-request-size" in json.loads(text)["error"]


def test_a_canary_gets_exactly_its_percent_and_promoting_it_starts_nothing(on_a: Client, store: Path) -> None:
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
    """Ask where an endpoint leads; returns the status and the body."""
    connection = http.client.HTTPConnection(way.url.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, b"{}", {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("percent", [0, 10])
def test_one_release_is_reached_whatever_share_it_gets(on_a: Client, store: Path, percent: int) -> None:
    reach = on_a.target.reach
    status = on_a.rollout("demo", B, store / "b", canary=percent)
    assert (status.phase, status.wanted, status.candidate, status.stable) == (Phase.READY, B, B, A)
    assert {s.release: s.percent for s in status.traffic} == {B: percent, A: 100 - percent}
    assert [(r.release, r.ready, r.pods) for r in status.revisions] == [(A, 1, 1), (B, 1, 1)]
    for release, name in ((B, "b"), (A, "a")):
        for via in (Via.INGRESS, Via.DIRECT):
            way = reach.endpoint(DEMO, via, release=release)
            for _ in range(5):  # each of them, where a split would send some elsewhere
                code, body = ask_at(way)
                assert (code, json.loads(body)["release"]) == (200, name)
        code, models = ask_at(reach.endpoint(DEMO, Via.MANAGEMENT, release=release), "GET", "/models/demo")
        assert (code, json.loads(models)[0]["workers"][0]["status"]) == (200, "READY")
    assert reach.endpoint(DEMO, Via.DIRECT) == reach.endpoint(DEMO, Via.DIRECT, release=A)  # it gets the most
    answers = Counter(on_a.ask("/predictions/demo")[1]["release"] for _ in range(100))
    assert answers == Counter({"a": 100 - percent, "b": percent})
    with pytest.raises(NotFoundError, match="release nobody of default/demo not found"):
        reach.endpoint(DEMO, release="nobody")
    with pytest.raises(NotFoundError):
        reach.endpoint(Reference("default", "other"), release=A)


def test_the_metrics_of_a_release_count_its_requests(on_a: Client, store: Path) -> None:
    on_a.rollout("demo", B, store / "b", canary=0)

    def count(release: str | None) -> float:
        way = on_a.target.reach.endpoint(DEMO, Via.METRICS, release=release)
        code, text = ask_at(way, "GET", "/metrics")
        assert code == 200
        found = re.findall(
            r'^ts_inference_requests_total\{.*model_name="demo".*\} (\S+)$', text, re.MULTILINE
        )
        return sum(map(float, found))

    before, idle = count(A), count(B)
    assert count(None) == before  # of the one that gets the most
    for _ in range(7):
        assert on_a.ask("/predictions/demo")[0] == 200
    assert (count(A) - before, count(B) - idle) == (7, 0)


def test_scaling_restarts_nothing_and_makes_no_revision(on_a: Client, store: Path) -> None:
    def running() -> list[tuple[str, int | None]]:
        return [(r.name, r.pid) for r in on_a.node.info().services[0].revisions if not r.draining]

    before = running()
    status = on_a.rollout("demo", A, store / "a", replicas=3)
    assert (status.phase, status.wanted) == (Phase.READY, A)
    assert on_a.live(DEMO).document["spec"]["predictor"]["minReplicas"] == 3
    assert running() == before


def test_no_request_is_lost_while_a_b_a_are_rolled_out(on_a: Client, store: Path) -> None:
    with Load(on_a) as load:
        load.wait_for(25)
        for release, folder in ((B, store / "b"), (A, store / "a")):
            status = on_a.rollout("demo", release, folder)
            assert [(s.release, s.percent) for s in status.traffic] == [(release, 100)]
            load.wait_for(25)
    assert load.statuses() == {200: len(load.answers)}
    assert {answer["release"] for _, answer in load.answers} == {"a", "b"}


def test_the_old_release_answers_what_it_has_begun_and_is_gone_then(on_a: Client, store: Path) -> None:
    [revision] = [r for r in on_a.node.info().services[0].revisions if not r.draining]
    old = psutil.Process(revision.pid)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(on_a.ask, "/predictions/demo", {"sleep": 10})
        status = on_a.rollout("demo", B, store / "b")
        replaced = time.monotonic()
        assert [(s.release, s.percent) for s in status.traffic] == [(B, 100)]
        assert asked.result() == (200, {"release": "a", "mode": ""})
    last = max(time.monotonic(), replaced + DRAIN)
    old.wait(60)
    assert time.monotonic() - last < 1.0
    assert len(on_a.java()) == 1


@pytest.mark.parametrize("victim", ["first process", "launcher", "JVM"])
def test_a_killed_torchserve_comes_back_by_itself_and_says_why_it_was_away(on_a: Client, victim: str) -> None:
    [revision] = [r for r in on_a.node.info().services[0].revisions if not r.draining]
    line = [psutil.Process(revision.pid)]
    for _ in range(2):
        line += line[-1].children()
    process = dict(zip(["first process", "launcher", "JVM"], line, strict=True))[victim]
    with Load(on_a) as load:
        load.wait_for(10)
        process.kill()
        end = time.monotonic() + 60  # until another one is started, this one may still count as ready
        while revision.pid in {r.pid for r in on_a.node.info().services[0].revisions}:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert on_a.wait(DEMO).phase is Phase.READY
        load.wait_for(10)
    assert set(load.statuses()) == {200, 503}
    reasons = {answer["error"] for code, answer in load.answers if code == 503}
    told = r"is not ready: \w|ended while it was answering|does not (answer|listen): it is being started"
    assert [reason for reason in reasons if not re.search(told, reason)] == []
    assert load.answers[-1][0] == 200
    assert not any(one.is_running() for one in line)


def test_a_worker_that_dies_is_a_503_until_torchserve_has_it_back(on_a: Client) -> None:
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
            IMPORTS_WHAT_IS_NOT_THERE,
            None,
            "No module named 'no_such_module_at_all' (handler.py, line 1)",
        ),
        ("raises", RAISES, None, "ValueError: the weights are of another shape (handler.py, line 4)"),
        (
            "pip",
            ANSWER.format(release="p"),
            "no-such-package-anywhere\n",
            "satisfies the requirement no-such-package",
        ),
    ],
    ids=["imports", "raises", "pip"],
)
def test_a_release_that_cannot_load_never_serves_and_says_why(
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


def test_requirements_that_say_more_than_a_pipe_holds_are_installed(on_a: Client, tmp_path: Path) -> None:
    package = make_noisy_package(tmp_path / "noisy")
    handler = "import noisy\n" + ANSWER.format(release="noisy")
    release = make_release(tmp_path / "n", "demo", handler, requirements=f"noisy @ {package.as_uri()}\n")
    status = on_a.rollout("demo", "1.0-noisy", release)
    assert status.phase is Phase.READY, status.message
    assert on_a.ask("/predictions/demo")[1]["release"] == "noisy"
    revision = on_a.node.info().services[0].revisions[0].name
    log = on_a.state / "local" / "logs" / f"default.{revision}" / "pip.log"
    assert log.stat().st_size > 64 << 10


def test_the_documents_environment_reaches_the_handler(demo: Client, store: Path) -> None:
    assert demo.rollout("demo", A, store / "a", env={"MODE": "tést"}).phase is Phase.READY
    assert demo.ask("/predictions/demo")[1] == {"release": "a", "mode": "tést"}


def test_what_cannot_be_served_is_refused_before_anything_changes(on_a: Client, tmp_path: Path) -> None:
    bundle = make_bundle("demo", B, tmp_path)
    bundle.service["spec"]["predictor"]["model"]["storageUri"] = "s3://bucket/demo/"
    with pytest.raises(TargetError, match="s3://bucket/demo/ is not a folder"):
        on_a.target.services.check(bundle)
    with pytest.raises(TargetError, match="s3://bucket/demo/ is not a folder"):
        on_a.apply(bundle)
    status = on_a.wait(DEMO)
    assert status.wanted == A
    assert on_a.rollout("demo", B, tmp_path / "gone").phase is Phase.FAILED


def test_a_deleted_service_leaves_nothing(demo: Client, store: Path) -> None:
    other, services = Reference("default", "other"), demo.target.services
    demo.apply(make_bundle("other", A, store / "a"))
    assert services.delete(other) == ()
    assert services.delete(other) is None
    assert services.get(other) is None
    with pytest.raises(NotFoundError):
        next(services.watch(other, 1.0))
    assert list((demo.state / "local").rglob("*other*")) == []
    assert [status.reference.name for status in services.list_all()] == ["demo"]


def test_a_rollout_during_a_delete_of_the_same_name_keeps_its_own_logs(demo: Client, store: Path) -> None:
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
