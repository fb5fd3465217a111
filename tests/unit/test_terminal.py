"""Control characters in text from others are escaped in every output."""

from __future__ import annotations

import ast
import importlib
import io
import json
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import deployer.cli
from deployer.cli import predictions, printers, terminal
from deployer.cli.failures import INTERRUPTED, Report, report_interrupt
from deployer.cli.options import Output
from deployer.errors import PredictError
from deployer.events import Applied, Applying, Event, Pushed, StatusChanged, Warned
from deployer.observed import Observed, Phase, Reference
from deployer.predict import Failure, Prediction

main = importlib.import_module("deployer.cli.main")
HOSTILE = {
    "colour": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;owned\x07",
    "cursor": "\x1b[2J\x1b[H",
    "carriage return": "fine\rerror: not fine",
    "backspace": "rm\b\bls",
    "bell": "\x07",
    "delete": "\x7f",
    "8-bit CSI": "\x9b31m",
    "next line": "\x85",
    "right to left": "\u202egnp.exe\u202c",
    "isolate": "\u2066x\u2069",
    "mark": "\u200f",
    "line separator": "\u2028",
    "byte order": "\ufeff",
    "lone surrogate": "\ud800",
    "byte that is not UTF-8": "\udcff",
    "nul": "\0",
}
CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


@pytest.fixture(params=HOSTILE)
def hostile(request: pytest.FixtureRequest) -> str:
    return HOSTILE[request.param]


@pytest.fixture(autouse=True)
def written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Record what is written to stdout and stderr; text that is not UTF-8 fails."""
    shown = io.StringIO()

    def write(stream: object, text: str) -> None:
        text.encode()
        shown.write(text)

    monkeypatch.setattr(terminal, "_write", write)
    return shown


def is_safe(text: str) -> bool:
    return not CONTROLS.search(text)


@given(st.text(st.characters()))
def test_control_characters_are_escaped_in_any_text(text: str) -> None:
    shown = terminal.plain(text)
    assert is_safe(shown)
    shown.encode()
    assert is_safe(terminal.cell(text))
    assert not {"\n", "\t"} & set(terminal.cell(text))


def test_other_characters_stay_as_they_are() -> None:
    for text in (
        "ünïcödé 漢字 \U0001f469\u200d\U0001f469",
        "a\tb\nc",
        "\u0645\u06cc\u200c\u062e",
        "שלום",
        "\\u001b",
    ):
        assert terminal.plain(text) == text


def test_escapes_are_readable() -> None:
    assert terminal.plain("\x1b[31mred\x1b[0m") == "red"
    assert (
        terminal.plain("\x1b]0;x\x07\r\x9b\u202e\udcff") == "\\u001b]0;x\\u0007\\u000d\\u009b\\u202e\\udcff"
    )
    assert terminal.cell("a\nb\tc") == "a\\nb\\tc"


@pytest.mark.parametrize("output", get_args(Output))
def test_predictions_and_file_names_are_escaped(hostile: str, output: Output, written: io.StringIO) -> None:
    answers = [
        Prediction(name=f"{hostile}.png", value={"class": hostile, hostile: [hostile]}, milliseconds=1),
        Failure(name="b.png", error=PredictError(f"the handler says: {hostile}")),
    ]
    with pytest.raises(PredictError):
        predictions.print_answers(answers, output)
    shown = written.getvalue()
    assert is_safe(shown)
    if output == "json":
        first, second = json.loads(shown)
        assert first["image"] == f"{hostile}.png"
        assert first["prediction"] == {"class": hostile, hostile: [hostile]}
        assert second["error"].endswith(hostile)
    elif output == "yaml" and not re.search("[\ud800-\udfff]", hostile):  # invalid in YAML
        first, _ = yaml.safe_load_all(shown)
        assert first["prediction"] == {"class": hostile, hostile: [hostile]}
    elif output == "table":
        assert len(shown.splitlines()) == 1  # the error is raised


def test_a_value_in_a_table_is_json(hostile: str, written: io.StringIO) -> None:
    predictions.print_answers([Prediction(name="a.png", value=[hostile, "ü"], milliseconds=1)], "table")
    assert "ü" in written.getvalue()
    assert json.loads(written.getvalue().removeprefix("a.png   ")) == [hostile, "ü"]


def test_events_tables_and_errors_are_escaped(hostile: str, written: io.StringIO) -> None:
    status = Observed(
        reference=Reference("default", "digits"),
        wanted=hostile,
        phase=Phase.FAILED,
        reason=hostile,
        message=f"{hostile}\nhint: run something else",
        log=(hostile,),
    )
    viewer = printers.Viewer()
    for event in (Warned(hostile), StatusChanged(status)):
        viewer(event)
    printers.print_table(["what", "value"], [(hostile, f"{hostile}\nsecond line")])
    report = Report("conflict", f"it says {hostile}\nhint: run something else", hostile, hostile, 12)
    main._print(report)
    shown = written.getvalue()
    assert is_safe(shown)
    assert "\nhint: run something else" not in shown  # a separate line would look like a hint


def test_an_error_as_json_is_escaped(hostile: str, written: io.StringIO) -> None:
    main._print_json(Report("conflict", hostile, hostile, hostile, 12), [hostile])
    assert is_safe(written.getvalue())
    assert json.loads(written.getvalue()) == {
        "code": "conflict",
        "message": hostile,
        "where": hostile,
        "hint": hostile,
        "exit_code": 12,
        "warnings": [hostile],
    }


def test_wrong_usage_is_escaped(hostile: str, written: io.StringIO) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(["predict", f"--{hostile}"])
    assert caught.value.code == 2
    assert "unknown option" in written.getvalue()
    assert is_safe(written.getvalue())


def test_only_the_terminal_module_writes() -> None:
    for path in Path(deployer.cli.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        used = {
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        calls = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        writers = used & {"typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr.write"}
        assert not writers, path
        assert "print" not in calls, path


@pytest.mark.parametrize(
    ("happened", "stopped"),
    [
        ([], "nothing was applied"),
        ([Pushed(release="a", uri="s3://m/a/", bytes_written=0)], "nothing was applied"),
        ([Applying(service="n/s", release="a")], "might be partly applied"),
        ([Applying(service="n/s", release="a"), Applied(service="n/s", release="a")], "is applied to n/s"),
    ],
    ids=["started", "pushed", "applying", "applied"],
)
def test_ctrl_c_reports_the_progress(happened: list[Event], stopped: str, written: io.StringIO) -> None:
    with pytest.raises(terminal.StoppedError) as caught, printers.Viewer() as viewer:
        for event in happened:
            viewer(event)
        raise KeyboardInterrupt
    main._print(report_interrupt(INTERRUPTED, str(caught.value)))
    error, hint = written.getvalue().splitlines()[-2:]
    assert error.startswith("error: interrupted: ")
    assert stopped in error
    assert hint.startswith("hint: ")
