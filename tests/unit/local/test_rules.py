"""The pure modules of the local target: revisions, traffic, status, launch and logs."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from deployer.bundle import Bundle
from deployer.errors import TargetError
from deployer.journal import Provenance, plan_entry
from deployer.manifest import first_process
from deployer.observed import NOT_RUNNING, Observed, Phase, Revision
from deployer.targets.local.launch import Launch, Ports, plan_launch
from deployer.targets.local.logs import read_logs, read_previous
from deployer.targets.local.protocol import Wanted
from deployer.targets.local.revisions import (
    HISTORY,
    Line,
    Record,
    check_bundle,
    commit_traffic,
    note_failure,
    release_folder,
)
from deployer.targets.local.status import Seen, build_document, observe
from deployer.targets.log_lines import Part
from tests.local.releases import ANSWER, make_bundle, make_release, want

NOW = "2026-01-01T00:00:00Z"
FIRST, SECOND, THIRD = (f"demo-predictor-0000{number}" for number in (1, 2, 3))


def apply(record: Record | None, release: str, canary: int | None = None) -> Record:
    return want(record, make_bundle("demo", release, Path("/store") / release, canary=canary), NOW)


def split(record: Record) -> list[tuple[str, int]]:
    return [(line.revision, line.percent) for line in record.traffic]


def test_the_first_release_gets_all_traffic_even_as_a_canary() -> None:
    record = commit_traffic(apply(None, "a", canary=10))
    assert split(record) == [(FIRST, 100)]
    assert split(commit_traffic(apply(record, "a", canary=10))) == [(FIRST, 100)]


def test_a_canary_shares_traffic_with_the_last_full_rollout() -> None:
    record = apply(commit_traffic(apply(None, "a")), "b", canary=10)
    assert split(record) == [(FIRST, 100)]
    assert record.required == {FIRST, SECOND}
    record = commit_traffic(record)
    assert split(record) == [(SECOND, 10), (FIRST, 90)]
    more = commit_traffic(apply(record, "b", canary=50))
    assert (split(more), len(more.revisions)) == ([(SECOND, 50), (FIRST, 50)], 2)
    third = commit_traffic(apply(more, "c", canary=10))
    assert split(third) == [(THIRD, 10), (FIRST, 90)]
    promoted = commit_traffic(apply(third, "c"))
    assert split(promoted) == [(THIRD, 100)]
    assert (promoted.rolled_out, promoted.previous) == (THIRD, FIRST)
    assert promoted.in_use == {"a", "c"}


def test_the_last_lines_of_each_log_and_all_new_ones(tmp_path: Path) -> None:
    first, second = tmp_path / "a.log", tmp_path / "b.log"
    first.write_text("1\n2\n3\n")
    second.write_text("1\n")
    logs = [("a", first), ("b", second)]
    assert list(read_logs(lambda: logs, follow=False, part=Part(tail=2))) == ["[a] 2", "[a] 3", "[b] 1"]
    lines = read_logs(lambda: logs, follow=True, part=Part(tail=0), sleep=lambda _: append(first, "4\n5\n"))
    assert [next(lines), next(lines)] == ["[a] 4", "[a] 5"]
    (tmp_path / "a.log.1").write_text("x\ny\n")
    assert list(read_previous(logs[:1], Part(tail=1))) == ["y"]


def test_logs_since_some_seconds(tmp_path: Path) -> None:
    log, now = tmp_path / "a.log", datetime.now()  # noqa: DTZ005
    lines = [f"{(now - timedelta(seconds=age)).isoformat()[:23].replace('.', ',')} {age}" for age in (90, 30)]
    log.write_text("\n".join([*lines, "of 30", ""]))
    shown = list(read_logs(lambda: [("a", log)], follow=False, part=Part(since=60.0)))
    assert shown == [lines[1], "of 30"]
    assert list(read_logs(lambda: [("a", log)], follow=False, part=Part(since=10.0))) == []


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_logs_show_requests_but_not_the_supervisors_probes(tmp_path: Path) -> None:
    log = tmp_path / "demo.log"
    request = '2026-01-01T00:00:00 [INFO ] ACCESS_LOG - /127.0.0.1:4 "POST /predictions/demo HTTP/1.1" 200 5'
    probe = request.replace("POST /predictions/demo", "GET /models?limit=1000")
    failed = request.replace("POST /predictions/demo", "GET /models/demo").replace('" 200', '" 500')
    log.write_text("\n".join([request, probe, probe.replace("?limit=1000", "/demo"), failed, ""]))
    assert list(read_logs(lambda: [("demo", log)], follow=False)) == [request, failed]
    (tmp_path / "demo.log.1").write_text(f"{probe}\nolder\n")
    assert list(read_previous([("demo", log)])) == ["older"]
    assert list(read_previous([("demo", log), ("next", tmp_path / "next.log")])) == [
        "[demo] older",
        "[next] no previous log",
    ]


def test_an_earlier_release_gets_its_revision_back() -> None:
    record = commit_traffic(apply(commit_traffic(apply(None, "a")), "b"))
    back = commit_traffic(apply(record, "a"))
    assert split(back) == [(FIRST, 100)]
    assert (back.latest, back.rolled_out, back.previous) == (FIRST, FIRST, SECOND)
    assert len(back.revisions) == 2


def test_a_fully_rolled_out_release_keeps_all_traffic_as_a_canary() -> None:
    record = commit_traffic(apply(commit_traffic(apply(None, "a")), "b"))
    assert split(commit_traffic(apply(record, "b", canary=0))) == [(SECOND, 100)]


def test_applying_a_release_again_only_clears_its_failure() -> None:
    record = commit_traffic(apply(None, "a"))
    assert apply(record, "a") == record
    failed = note_failure(apply(record, "b"), SECOND, "ImportError: torch")
    assert failed.required == {FIRST}
    again = apply(failed, "b")
    assert again.revision(SECOND).failure == ""
    assert again.generation == failed.generation


def test_old_revisions_are_dropped_and_their_numbers_are_not_reused() -> None:
    record = None
    for number in range(40):
        record = commit_traffic(apply(record, f"r{number}"))
    assert record
    assert record.latest == "demo-predictor-00040"
    assert len(record.revisions) == HISTORY + 3
    assert commit_traffic(apply(record, "r1")).latest == "demo-predictor-00041"


def observed_state(
    record: Record, seen: dict[str, Seen], *, stable: str | None = None, **more: Any
) -> Observed:
    return observe(record, build_document(record, seen, NOW, **more), seen, stable=stable)


def test_the_status_distinguishes_loading_ready_lost_and_failed() -> None:
    record = apply(commit_traffic(apply(None, "a")), "b")
    seen = {FIRST: Seen(True), SECOND: Seen(False, "loading")}
    loading = observed_state(record, seen)
    assert (loading.phase, loading.message) == (Phase.PROGRESSING, f"{SECOND}: loading")
    assert (loading.wanted, loading.stable, loading.candidate) == ("b", "a", "b")
    assert loading.revisions == (Revision(FIRST, "a", ready=1, pods=1), Revision(SECOND, "b", pods=1))
    assert loading.replicas == (1, 2)
    failed = observed_state(note_failure(record, SECOND, "ImportError: torch"), {FIRST: Seen(True)})
    assert (failed.phase, failed.message) == (Phase.FAILED, "ImportError: torch")
    assert "kdeploy logs" in failed.hint
    assert [(s.release, s.percent) for s in failed.traffic] == [("a", 100)]
    assert failed.replicas == (1, 1)
    record = commit_traffic(record)
    ready = observed_state(record, {SECOND: Seen(True)})
    assert (ready.phase, ready.hint, ready.candidate) == (Phase.READY, "", None)
    lost = observed_state(record, {SECOND: Seen(False, "killed")})
    assert (lost.phase, lost.reason, lost.replicas) == (Phase.PROGRESSING, "RevisionLost", (0, 1))
    down = observed_state(record, {}, down="start it")
    assert (down.phase, down.reason, down.traffic, down.serving) == (Phase.STOPPED, NOT_RUNNING, (), None)
    assert (down.stable, down.revisions, down.replicas) == ("b", (), (0, 1))


def test_a_condition_keeps_its_time_until_it_changes() -> None:
    record, later = commit_traffic(apply(None, "a")), "2026-02-02T00:00:00Z"
    ready = build_document(record, {FIRST: Seen(True)}, NOW)
    assert build_document(record, {FIRST: Seen(True)}, later, before=ready) == ready
    lost = build_document(record, {FIRST: Seen(False, "killed")}, later, before=ready)
    times = {c["type"]: c["lastTransitionTime"] for c in lost["status"]["conditions"]}
    assert times["Ready"] == later


def test_a_service_is_ready_when_actual_traffic_equals_wanted_traffic() -> None:
    record = commit_traffic(apply(None, "a"))
    canary = apply(record, "b", canary=10)
    seen = {FIRST: Seen(True), SECOND: Seen(True)}
    assert observed_state(canary, seen).phase is Phase.PROGRESSING
    status = observed_state(commit_traffic(canary), seen)
    assert (status.phase, status.percent, status.stable) == (Phase.READY, 10, "a")
    assert observed_state(commit_traffic(canary), seen, stable="z").phase is Phase.PROGRESSING
    promoted = apply(commit_traffic(canary), "b")
    assert observed_state(promoted, seen).phase is Phase.PROGRESSING
    assert observed_state(commit_traffic(promoted), seen).phase is Phase.READY


def test_scaling_creates_no_revision() -> None:
    record = commit_traffic(apply(None, "a"))
    scaled = want(record, make_bundle("demo", "a", Path("/store/a"), replicas=3), NOW)
    assert scaled.service["spec"]["predictor"]["minReplicas"] == 3
    assert (scaled.revisions, scaled.latest) == (record.revisions, record.latest)
    assert (scaled.traffic, scaled.required) == (scaled.desired_traffic, record.required)
    assert scaled.generation == record.generation + 1


@pytest.mark.parametrize(
    "uri", ["s3://bucket/demo/", "file://elsewhere/demo", "pvc://claim/demo", "/folder", "https://x/y"]
)
def test_a_storage_uri_must_be_a_local_folder(uri: str) -> None:
    with pytest.raises(TargetError, match="not a folder of this machine"):
        release_folder(uri)


def test_an_invalid_bundle_is_refused() -> None:
    def change(bundle: Bundle, **predictor: object) -> Bundle:
        spec = {"predictor": {**bundle.service["spec"]["predictor"], **predictor}}
        return structs.replace(bundle, service={**bundle.service, "spec": spec})

    bundle = make_bundle("demo", "a", Path("/store/a"))
    for percent in (0, 100):
        check_bundle(change(bundle, canaryTrafficPercent=percent))
    for predictor, what in (
        ({"canaryTrafficPercent": 101}, "invalid percentage 101"),
        ({"canaryTrafficPercent": -1}, "invalid percentage -1"),
        ({"model": {"storageUri": "s3://bucket/a"}}, "cannot serve s3://bucket/a"),
    ):
        with pytest.raises(TargetError, match=what):
            check_bundle(change(bundle, **predictor))


def test_a_storage_uri_is_decoded() -> None:
    assert release_folder(Path("/a b/é%20").as_uri() + "/") == Path("/a b/é%20")


def launch(folder: Path, environment: dict[str, str], **more: Any) -> Launch:
    record = want(None, make_bundle("demo", "a", folder, **more))
    return plan_launch(
        record.revision(record.latest),
        ports=Ports(1, 2, 3, 4, 5, 6, 7),
        temporary=Path("/private/1"),
        logs=Path("/logs/x"),
        environment=environment,
    )


def test_a_launch_replaces_paths_and_ports_and_nothing_else(tmp_path: Path) -> None:
    folder = make_release(tmp_path / "a ü", "demo", ANSWER.format(release="a"))
    env = {"WHEELS": "/mnt/models/wheels", "CACHE": "/tmp/cache:/var/tmp", "PLAIN": "x"}
    mine = {"TS_NUMBER_OF_GPU": "1", "PYTHONPATH": "/x", "KDEPLOY_A": "1", "HOME": "/home/me", "LC_ALL": "C"}
    plan = launch(folder, mine, env=env)
    assert plan.command[1:3] == ("-c", first_process())
    assert plan.command[0] == plan.command[3] == sys.executable
    assert plan.command[4].endswith("/torchserve")
    assert f"--model-store={folder}/model-store" in plan.command
    assert "--ts-config=/private/1/config.properties" in plan.command
    assert plan.command.count("--foreground") == 1
    found = plan.environment
    assert found["WHEELS"] == f"{folder}/wheels"
    assert found["CACHE"] == "/private/1/cache:/var/tmp"
    assert (found["HOME"], found["PLAIN"], found["LC_ALL"]) == ("/home/me", "x", "C.UTF-8")
    assert not {"TS_NUMBER_OF_GPU", "PYTHONPATH", "KDEPLOY_A"} & found.keys()
    assert found["KDEPLOY_DRAIN_SECONDS"] == "1"
    assert found["KDEPLOY_TERMINATION_LOG"] == str(plan.message_path) == "/private/1/termination-log"
    assert found["KDEPLOY_CGROUP"] == "/private/1/no-cgroup"
    assert plan.grace == 71
    assert {found["TMPDIR"], found["TEMP"]} == {"/private/1"}
    assert found["PIP_LOG"] == "/logs/x/pip.log"
    properties = plan.properties.splitlines()
    assert "inference_address=http://127.0.0.1:1" in properties
    assert "grpc_management_port=5" in properties
    assert not any(line.startswith("model_store") for line in properties)


SOURCES = {
    "MODE": {"secretKeyRef": {"name": "hf", "key": "token"}},
    "LEVEL": {"configMapKeyRef": {"name": "c", "key": "k"}},
    "MAYBE": {"secretKeyRef": {"name": "other", "key": "k", "optional": True}},
    "POD": {"fieldRef": {"fieldPath": "metadata.name"}},
}


def test_a_variable_of_a_secret_or_config_map_comes_from_the_environment(tmp_path: Path) -> None:
    folder = make_release(tmp_path / "a", "demo", "")
    found = launch(folder, {"MODE": "/tmp/x", "LEVEL": ""}, env=SOURCES).environment
    assert (found["MODE"], found["LEVEL"]) == ("/tmp/x", "")
    assert not {"MAYBE", "POD"} & found.keys()
    for name, place in (("MODE", "key token of Secret hf"), ("LEVEL", "key k of ConfigMap c")):
        here = {"MODE": "", "LEVEL": ""}
        del here[name]
        with pytest.raises(TargetError, match=f"variable {name} is not set.* it replaces {place}") as caught:
            launch(folder, here, env=SOURCES)
        assert caught.value.where == f"serving.env.{name}"
        assert f"export {name}" in (caught.value.hint or "")


def test_the_message_to_the_supervisor_hides_the_values_of_variables() -> None:
    bundle = make_bundle("demo", "a", Path("/store/a"))
    wanted = Wanted(bundle, plan_entry(bundle, Provenance()), None, {"MODE": "planted"})
    assert "planted" not in repr(wanted)
    assert "MODE" in repr(wanted)


def test_a_missing_or_damaged_release_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="release folder not found"):
        launch(tmp_path / "gone", {})
    folder = make_release(tmp_path / "a", "demo", "")
    (folder / "config" / "config.properties").unlink()
    with pytest.raises(TargetError, match="cannot read TorchServe's configuration"):
        launch(folder, {})


def test_a_record_survives_encoding_and_decoding() -> None:
    import msgspec

    record = commit_traffic(apply(commit_traffic(apply(None, "a")), "b", canary=10))
    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record
    assert record.traffic[0] == Line(SECOND, 10)
    assert json.loads(msgspec.json.encode(record))["latest"] == SECOND
