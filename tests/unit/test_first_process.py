"""The parts of the container's first process: its message, its configuration, and its program text."""

from __future__ import annotations

import ast
import json
import re
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.manifest import first_process, render_runtime, runtime_name
from deployer.targets.local import torchserve
from manifests.first_process import (
    MESSAGE_MAX,
    PORT_TAKEN,
    Memory,
    address_of,
    compose,
    read_configuration,
    read_models,
    redact,
    unpack_metrics,
    write_private,
)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Looking in indexes: https://me:pa%20ss@host/simple", "Looking in indexes: https://***@host/simple"),
        ("https://glpat-123@host/x and ftp://a@b", "https://***@host/x and ftp://***@b"),
        ("GET https://host/a?token=abc&x=1", "GET https://host/a?token=***&x=1"),
        ("{'Authorization': 'Bearer eyJ.a.b', 'x': 1}", "{'Authorization': '***', 'x': 1}"),
        ("authorization: Basic dXNlcjpw", "authorization: ***"),
        ("sent Bearer abc", "sent Bearer ***"),
        ('{"password": "pa,ss", "user": "me"}', '{"password": "***", "user": "me"}'),
        ("AWS_SECRET_ACCESS_KEY=abc/def HF_TOKEN=hf_x", "AWS_SECRET_ACCESS_KEY=*** HF_TOKEN=***"),
        ("https://a.blob/x?sv=1&sig=a%2Bb&se=2", "https://a.blob/x?sv=1&sig=***&se=2"),
        ("printed s3cret and s3cret2", "printed *** and ***2"),
        ("https://me:p@ss@host/simple or https://a@b:80", "https://***@host/simple or https://***@b:80"),
        (
            "x-api-key: abc, 'secret_key': 'abc', private-key=abc",
            "x-api-key: ***, 'secret_key': '***', private-key=***",
        ),
        ("AccountName=me;AccountKey=ab/c==;X=1", "AccountName=me;AccountKey=***;X=1"),
        ("passphrase=abc", "passphrase=***"),
        ("password='my pass, word' token=b'abc' x", "password='***' token=b'***' x"),
        (r'"{\"token\": \"a b\"}"', r'"{\"token\": \"***"}"'),
        ("Cookie: a=b; c=d\nnext", "Cookie: ***\nnext"),
        ("git clone --auth-token abc --password d e", "git clone --auth-token *** --password *** e"),
        ('{"token": {"a": 1}}', '{"token": {"a": 1}}'),
        ("printed pgw0rd and c0nn and p4ss in /it", "printed *** and *** and *** in /it"),
        ("KeyError: 'tokens'", "KeyError: 'tokens'"),
        ("mail me@host, see http://host/a@b", "mail me@host, see http://host/a@b"),
    ],
)
def test_secrets_are_redacted(text: str, left: str) -> None:
    environment = {
        "MY_API_KEY": "s3cret",
        "SHORT_TOKEN": "x",
        "TOKENIZERS_PARALLELISM": "printed",
        "PWD": "/it",
    }
    environment |= {"PGPASSWORD": "pgw0rd", "AZURE_STORAGE_CONNECTION_STRING": "c0nn", "DB_PASS": "p4ss"}
    assert redact(text, environment) == left


LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"))


@given(reason=LINE, lines=st.lists(LINE | st.just("ü" * 700), max_size=30))
def test_a_message_fits_and_has_the_reason_first_and_then_the_newest_lines(
    reason: str, lines: list[str]
) -> None:
    message = compose(reason, lines, {})
    assert len(message.encode()) <= MESSAGE_MAX
    assert message.split("\n")[0] == redact(reason, {}).encode()[: MESSAGE_MAX // 2].decode(errors="ignore")
    if lines and len(lines[-1].encode()) < 500:
        assert message.split("\n")[-1] == redact(lines[-1], {})


@pytest.mark.parametrize(
    ("events", "limit", "folder"),
    [("memory.events", "memory.max", ""), ("memory.oom_control", "memory.limit_in_bytes", "memory")],
    ids=["cgroup 2", "cgroup 1"],
)
def test_a_worker_killed_for_memory_is_detected(tmp_path: Path, events: str, limit: str, folder: str) -> None:
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    (place / events).write_text("oom 7\noom_kill 3\noom_group_kill 0\n")
    memory = Memory(str(tmp_path))
    assert memory.killed() == ""
    (place / events).write_text("oom 8\noom_kill 4\noom_group_kill 0\n")
    assert memory.killed().startswith("the worker ran out of memory")
    (place / limit).write_text("157286400\n")
    assert memory.killed() == (
        "the worker ran out of memory: the container's limit is 150Mi; raise serving.memory"
    )
    assert Memory(str(tmp_path / "none")).killed() == ""


@pytest.mark.parametrize("form", ["--ts-config={}", "--ts-config {}", "the variable"])
def test_torchserve_gets_a_private_configuration_with_another_address(tmp_path: Path, form: str) -> None:
    original = tmp_path / "config.properties"
    original.write_text("# a=b\ninference_address = http://0.0.0.0:8080\nmodel_store=/caf\\u00e9\nx=1=2")
    environment = {"TS_CONFIG_FILE": str(original)} if form == "the variable" else {}
    command = ["torchserve", "--foreground", *form.format(original).split(), "--ncs"]
    text, entries = read_configuration(command, environment)
    assert entries == {"inference_address": "http://0.0.0.0:8080", "model_store": "/caf\\u00e9", "x": "1=2"}
    changes = {"inference_address": "http://127.0.0.1:1234", "metrics_config": "/été"}
    path = Path(write_private(text, changes))
    assert path.read_text() == (
        "# a=b\nmodel_store=/caf\\u00e9\nx=1=2\ninference_address=http://127.0.0.1:1234\n"
        "metrics_config=/\\u00e9t\\u00e9\n"
    )
    assert path.stat().st_mode & 0o77 == 0
    path.unlink()


def test_the_metrics_configuration_is_unpacked_from_the_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.mar", "w") as archive:
        archive.writestr("kdeploy_metrics.yaml", "ts_metrics: {}")
    snapshot = json.dumps({"models": {"m": {"1.0": {"marName": "m.mar"}}}})
    entries = {"model_snapshot": snapshot, "metrics_config": "kdeploy_metrics.yaml"}
    for command, more in (
        (["torchserve", f"--model-store={tmp_path}"], {}),
        ([], {"model_store": str(tmp_path)}),
    ):
        path = Path(unpack_metrics(command, {**entries, **more}))
        assert path.read_text() == "ts_metrics: {}"
        path.unlink()
    assert unpack_metrics([], {}) == ""
    assert unpack_metrics([], {"metrics_config": "/a/file/of/the/image.yaml"}) == ""


def test_the_models_are_those_of_the_snapshot() -> None:
    snapshot = '{"models": {"a": {"1.0": {}}, "b": {"2": {}}}}'
    assert read_models({"model_snapshot": snapshot}) == {"a": "1.0", "b": "2"}
    assert read_models({}) == {}


def test_addresses_are_read_the_way_torchserve_reads_them() -> None:
    assert address_of({"a": "http://0.0.0.0:80"}, "a", 1) == ("0.0.0.0", 80)
    assert address_of({}, "a", 8080) == ("127.0.0.1", 8080)
    with pytest.raises(ValueError, match="must be http://HOST:PORT"):
        address_of({"a": "unix:/tmp/socket"}, "a", 1)


def test_the_program_needs_only_python_3_9_and_for_grpc_two_packages_of_kserves_images() -> None:
    tree = ast.parse(first_process(), feature_version=(3, 9))
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {name for node in imports for name in _modules(node)}
    assert names - {"__future__", "grpc", "google"} <= sys.stdlib_module_names
    top = {name for node in imports if node in tree.body for name in _modules(node)}
    assert not top & {"grpc", "google"}
    assert not any(isinstance(node, (ast.Match, ast.TryStar)) for node in ast.walk(tree))


def _modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    modules = [node.module or "."] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
    return [module.partition(".")[0] for module in modules]


def test_the_program_contains_no_template_or_variable_syntax() -> None:
    [container] = render_runtime()["containers"]
    for command in (container["command"], container["readinessProbe"]["exec"]["command"]):
        assert command[:2] == ["python", "-c"]
        assert "{{" not in command[2], "KServe renders templates in commands"
        assert not re.search(r"\$[({$]", command[2]), "Kubernetes expands variables in commands"
        assert len(command[2].encode()) < 100_000, "Linux limits one argument to 128 KiB"
        compile(command[2], "program", "exec")
    assert container["args"][0] == "torchserve"


def test_a_runtimes_name_depends_on_its_content() -> None:
    spec = render_runtime()
    assert re.fullmatch(r"kdeploy-torchserve-[0-9a-f]{8}", runtime_name(spec))
    assert runtime_name(spec) == runtime_name(render_runtime())
    assert runtime_name({**spec, "multiModel": True}) != runtime_name(spec)


def test_the_local_target_and_the_first_process_agree_on_the_exit_status_of_a_taken_port() -> None:
    assert torchserve.PORT_TAKEN == PORT_TAKEN
