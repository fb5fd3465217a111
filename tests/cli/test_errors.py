"""A failing command prints one error, as text or as JSON. Its hint names commands that exist."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import deployer
from deployer import errors
from deployer.cli import deps
from deployer.cli.app import app
from deployer.cli.failures import CODES
from deployer.cli.main import main
from deployer.cli.terminal import StoppedError, tell, warn
from deployer.errors import KdeployError

ROOT = Path(__file__).parents[2]
COMMANDS: Any = get_command(app)
PROJECT = """
[model]
name = "digits"
version = "1.0"
handler = "handler.py"
[targets.laptop]
kind = "local"
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    (tmp_path / "kdeploy.toml").write_text(PROJECT)
    (tmp_path / "handler.py").write_text("def handle(data, context):\n    return data\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDEPLOY_DEBUG", "")

    def command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return int(ended.value.code or 0), *capfd.readouterr()

    return command


WRONG_USAGE = [
    (["push", "--nonsense"], "unknown option '--nonsense'", "kdeploy push", "Run `kdeploy push --help`"),
    (["push", "--stric"], "unknown option '--stric'", "kdeploy push", "Did you mean --strict?"),
    (["pus"], "unknown command 'pus'", "kdeploy", "list the commands. Did you mean push?"),
    (["local", "strt"], "unknown command 'strt'", "kdeploy local", "Did you mean start?"),
    (
        ["push", "-o", "jsn"],
        "invalid value 'jsn'",
        "kdeploy push --output",
        "Use one of: table, json, yaml, name. Did you mean json?",
    ),
    (["rollout", "--strategy", "x"], "'x'", "kdeploy rollout --strategy", "Use one of: rolling, recreate."),
    (
        ["rollout", "--canary", "200"],
        "invalid number '200': must be from 0 to 100",
        "kdeploy rollout --canary",
        "Run",
    ),
    (["prune", "--keep", "-1"], "invalid number '-1': must be 1 or more", "kdeploy prune --keep", "Run"),
    (["prune", "--keep", "few"], "invalid number 'few'", "kdeploy prune --keep", "Run"),
    (["prune"], "missing option --keep", "kdeploy prune --keep", "Run `kdeploy prune --help`"),
    (["predict"], "missing argument FILE", "kdeploy predict FILE", "Run"),
    (["push", "--store"], "option '--store' requires an argument", "kdeploy push", "Run"),
    (["models", "scale", "--min-workers"], "requires an argument", "kdeploy models scale", "Run"),
    (["push", "extra"], "unexpected argument 'extra'", "kdeploy push", "Run"),
    (
        ["rollout", "--canary", "5", "history"],
        "options of history must follow its name",
        "kdeploy rollout",
        "Run",
    ),
]


@pytest.mark.parametrize(("arguments", "message", "where", "hint"), WRONG_USAGE)
def test_wrong_usage_has_the_shape_of_every_error(
    run: Run, arguments: list[str], message: str, where: str, hint: str
) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    error, place, advice = err.splitlines()
    assert (error[:7], place[:7], advice[:6]) == ("error: ", "where: ", "hint: ")
    assert message in error
    assert place.startswith(f"where: {where}")
    assert hint in advice


@pytest.mark.parametrize("arguments", [one[0] for one in WRONG_USAGE if "-o" not in one[0]])
def test_wrong_usage_as_json(run: Run, arguments: list[str]) -> None:
    code, out, err = run("-o", "json", *arguments)  # also if the parser stops before it
    report = json.loads(err)
    assert (code, out, report["exit_code"]) == (2, "", 2)
    assert report["code"] == "usage-error"
    code, out, err = run(arguments[0], "-ojson", *arguments[1:])
    assert (code, out, json.loads(err)["exit_code"]) == (2, "", 2)


@pytest.mark.parametrize("option", [["-o", "json"], ["-ojson"], ["--output", "json"], ["--output=json"]])
def test_an_error_is_one_json_object_and_stdout_is_empty(run: Run, option: list[str], tmp_path: Path) -> None:
    code, out, err = run("status", *option)
    assert (code, out) == (11, "")
    assert json.loads(err) == {
        "code": "not-found",
        "message": "service default/digits not found",
        "where": str(tmp_path / ".kdeploy"),
        "hint": json.loads(err)["hint"],
        "exit_code": 11,
    }
    assert len(err.splitlines()) == 1


def test_short_options_before_output_and_the_last_output_counts(run: Run) -> None:
    code, _, err = run("list", "-Ao", "json", "--target", "other")
    assert (code, json.loads(err)["where"]) == (3, "--target")
    code, _, err = run("list", "-o", "json", "-o", "table", "--target", "other")
    assert (code, err[:7]) == (3, "error: ")
    code, _, err = run("predict", "--", "-o", "json")
    assert (code, err.startswith("error: ")) == (7, True)


def test_an_error_lists_the_values_of_a_closed_set(run: Run) -> None:
    code, _, err = run("config", "--set", "model.runtime=pyton")
    assert (code, err.splitlines()) == (
        3,
        [
            "error: invalid value 'pyton'",
            "where: --set model.runtime",
            "hint: Use one of: python, python3. Did you mean python?",
        ],
    )
    _, _, err = run("status", "--target", "labtop")
    assert "unknown target 'labtop'\n" in err
    assert "hint: Use one of: laptop. Did you mean laptop?" in err


def test_warnings_are_printed_as_text_if_the_command_succeeds(run: Run, tmp_path: Path) -> None:
    code, out, err = run("diff", "--canary", "10", "-o", "json")
    assert (code, bool(json.loads(out))) == (15, True)
    assert err.startswith("warning: ")
    assert "it gets all requests, not 10" in err
    os.mkfifo(tmp_path / "pipe")
    code, out, err = run("rollout", "--canary", "10", "--set", "model.serialized-file=pipe", "-o", "json")
    assert (code, out, json.loads(err)["code"]) == (4, "", "invalid-model")


def test_warnings_before_an_error_are_in_its_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn_and_fail(*_: object, **__: object) -> None:
        tell("uploading")
        warn("the cluster is old")
        raise errors.ConflictError("another rollout is under way", where="default/digits", hint="Wait.")

    monkeypatch.setattr(deps, "workspace", warn_and_fail)
    code, out, err = run("status", "-o", "json")
    assert (code, out) == (12, "")
    assert json.loads(err) == {
        "code": "conflict",
        "message": "another rollout is under way",
        "where": "default/digits",
        "hint": "Wait.",
        "exit_code": 12,
        "warnings": ["the cluster is old"],
    }
    _, _, err = run("status")
    assert err.splitlines()[:3] == [
        "uploading",
        "warning: the cluster is old",
        "error: another rollout is under way",
    ]


def test_the_message_does_not_repeat_where(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise errors.StoreError("s3://models: access denied", where="s3://models")

    monkeypatch.setattr(deps, "workspace", fail)
    _, _, err = run("push")
    assert err == "error: access denied\nwhere: s3://models\n"


@pytest.mark.parametrize(
    ("raised", "code", "kind", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted", "interrupted"),
        (StoppedError("nothing was applied"), 130, "interrupted", "interrupted: nothing was applied"),
        (ValueError("surprise"), 1, "internal-error", "ValueError: surprise"),
        (PermissionError(13, "Permission denied", "x"), 16, "system-error", "Permission denied"),
        (MemoryError(), 16, "system-error", "out of memory"),
    ],
)
def test_interrupts_and_unexpected_errors_have_the_same_form(
    run: Run, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, kind: str, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(deps, "workspace", fail)
    for arguments in (["status"], ["status", "-o", "json"]):
        ended, out, err = run(*arguments)
        assert (ended, out) == (code, "")
    report = json.loads(err)
    assert (report["code"], report["message"], report["exit_code"]) == (kind, message, code)
    assert report["hint"]


def test_debug_is_accepted_anywhere_and_adds_the_traceback(run: Run) -> None:
    for arguments in (["--debug", "status"], ["status", "--debug"]):
        assert "Traceback" in run(*arguments)[2]
    report = json.loads(run("status", "-o", "json", "--debug")[2])
    assert "NotFoundError" in report["traceback"]


def test_sigterm_as_json(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an API server that does not respond
        cluster = {"server": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        kubeconfig = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {}}],
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
        child = subprocess.Popen(
            [sys.executable, "-m", "deployer", "list", "-o", "json"],
            cwd=tmp_path,
            env={**os.environ, "KUBECONFIG": "kubeconfig", "NO_PROXY": "*"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            child.send_signal(signal.SIGTERM)
            out, err = child.communicate(timeout=30)
    assert (child.returncode, out, json.loads(err)["code"]) == (143, "", "terminated")


def kinds(kind: type[KdeployError] = KdeployError) -> Iterator[type[KdeployError]]:
    for inner in kind.__subclasses__():
        if inner.__module__ == "deployer.errors":
            yield inner
            yield from kinds(inner)


def test_every_kind_of_error_has_its_own_code_and_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text("utf-8")
    codes = [*CODES.values(), *(kind.code for kind in kinds())]
    assert len(codes) == len(set(codes))
    for code in codes:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", code)
        assert f"| `{code}` |" in page


def texts() -> Iterator[tuple[str, str]]:
    """Yield every string of the package except docstrings, with its place."""
    folder = Path(deployer.__file__).parent
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in set(ast.walk(tree)) - docstrings:
            if isinstance(node, ast.JoinedStr):
                parts = [one.value if isinstance(one, ast.Constant) else "VALUE" for one in node.values]
                yield f"{path.relative_to(folder)}:{node.lineno}", "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.relative_to(folder)}:{node.lineno}", node.value


def named_commands() -> Iterator[tuple[str, str]]:
    for place, text in texts():
        for command in re.findall(r"`(?:cd \S+ && )?kdeploy ([^`]*)`", text):
            yield place, command


def fault(words: list[str]) -> str:
    """Return the command or option of a command line that does not exist."""
    command, rest = COMMANDS, list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    if getattr(command, "commands", {}) and rest and not rest[0].startswith("-") and rest[0].islower():
        return f"no command {rest[0]}"
    known = {"--help", "--debug"}.union(*(one.opts + one.secondary_opts for one in command.params))
    unknown = [one for one in rest if one.startswith("-") and one.partition("=")[0] not in known]
    return f"no option {unknown[0]}" if unknown else ""


def test_every_command_that_a_message_names_exists() -> None:
    found = list(named_commands())
    assert len(found) > 30
    wrong = [
        f"{place}: kdeploy {command}: {reason}"
        for place, command in found
        if (reason := fault([word for word in shlex.split(command) if word not in ("…", "...")]))
    ]
    assert wrong == []


def options(command: Any = COMMANDS) -> set[str]:
    """Return the names of the options of a command and its subcommands."""
    own = (one.opts + one.secondary_opts for one in command.params)
    return {"--help", "--debug"}.union(*own, *map(options, getattr(command, "commands", {}).values()))


PIPS = {"--extra-index-url"}  # flags of pip, in lines of a requirements file


def test_every_flag_that_a_message_names_exists() -> None:
    found = [(place, flag) for place, text in texts() for flag in re.findall(r"`(--[a-z-]+)[^`]*`", text)]
    assert len(found) > 5
    assert [one for one in found if one[1] not in options() | PIPS] == []


def test_no_message_names_a_file_of_the_checkout() -> None:
    hints = [
        (place, text) for place, text in texts() if re.search(r"docs/|examples/|\.md\b|manifests/", text)
    ]
    allowed = {"predict/content.py", "scaffold.py", "shipped.py", "__init__.py"}
    assert [one for one in hints if one[0].partition(":")[0] not in allowed] == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"n\n", "canceled: nothing was changed\n"),
        (b"\n", "canceled: nothing was changed\n"),
        (b"\x04", "error: interrupted: nothing was changed\n"),
        (b"\x03", "error: interrupted: nothing was changed\n"),
    ],
    ids=["no", "default", "end of input", "Ctrl-C"],
)
def test_a_declined_prompt_says_that_nothing_was_changed(tmp_path: Path, answer: bytes, said: str) -> None:
    master, slave = pty.openpty()
    code = (
        "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "from deployer.cli import main; main(['delete', 'digits', '--target=laptop'])"
    )
    (tmp_path / "kdeploy.toml").write_text(PROJECT)
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stderr is not None
    shown = b""
    while b"[y/N]" not in shown:
        byte = child.stderr.read(1)
        assert byte, shown
        shown += byte
    os.write(master, answer)
    _, err = child.communicate(timeout=30)
    os.close(master)
    os.close(slave)
    assert child.returncode == 130
    assert said in err.decode()
    assert "Traceback" not in err.decode()
