"""The output of `kdeploy predict`, in every format."""

from __future__ import annotations

import json

import pytest
import yaml

from deployer.cli.options import Output
from deployer.cli.predictions import print_answers
from deployer.errors import PredictError
from deployer.predict import Failure, Prediction, Resized

SMALLER = Resized(factor=0.4213, width=512, height=384, format="JPEG", size=1234, note="large.png: resized")
ANSWERS = [
    Prediction(name="large.png", value=7, milliseconds=1.5, resized=SMALLER),
    Prediction(name="small.png", value=3, milliseconds=1.5),
]


def printed(output: Output, capsys: pytest.CaptureFixture[str], *answers: Prediction | Failure) -> str:
    try:
        print_answers(answers, output)
    except PredictError:
        assert any(isinstance(answer, Failure) for answer in answers)
    output_read = capsys.readouterr()
    assert output_read.err == "".join(f"{one.resized.note}\n" for one in answers if one.resized)
    return output_read.out


def test_every_format_reports_a_resized_image(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed("table", capsys, *ANSWERS) == (
        "large.png   7   resized by 0.4213: 512x384\nsmall.png   3\n"
    )
    for output, read in (("json", json.loads), ("yaml", yaml.safe_load_all)):
        large, small = read(printed(output, capsys, *ANSWERS))
        assert large["resized"] == {
            "factor": 0.4213,
            "width": 512,
            "height": 384,
            "format": "JPEG",
            "size": 1234,
            "note": "large.png: resized",
        }
        assert small["resized"] is None
        assert (large["prediction"], small["prediction"]) == (7, 3)


def test_a_failure_reports_a_resized_image(capsys: pytest.CaptureFixture[str]) -> None:
    failed = Failure(name="large.png", error=PredictError("refused"), resized=SMALLER)
    answer, _ = json.loads(printed("json", capsys, failed, ANSWERS[1]))
    assert answer["resized"]["factor"] == 0.4213
    assert printed("table", capsys, failed) == ""  # the error and the note are on stderr


@pytest.mark.parametrize("output", ["json", "yaml", "name"])
def test_if_the_only_file_fails_stdout_stays_empty(
    output: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(output, capsys, Failure(name="a.png", error=PredictError("refused"))) == ""


def test_each_of_several_failures_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    failures = [
        Failure(name=name, error=PredictError("refused", where=name, hint="Try another."))
        for name in ("a.png", "b.png", "c.png")
    ]
    with pytest.raises(PredictError) as caught:
        print_answers([failures[0], ANSWERS[1], *failures[1:]], "table")
    assert (str(caught.value), caught.value.hint) == ("3 of 4 requests failed", "Try another.")
    shown = capsys.readouterr()
    assert shown.out == "small.png   3\n"
    assert shown.err == "error: a.png: refused\nerror: b.png: refused\nerror: c.png: refused\n"


def test_the_only_failure_is_raised_with_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    failed = Failure(name="a.png", error=PredictError("refused", where="a.png"))
    with pytest.raises(PredictError, match=r"a\.png: refused"):
        print_answers([failed, ANSWERS[1]], "table")
    assert capsys.readouterr() == ("small.png   3\n", "")


def test_numbers_are_rounded_in_the_table_only(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"p": 0.98765432109, "all": [1 / 3, 12345678, 1e-9, 1234.56789], "é": True}
    answer = Prediction(name="a.png", value=value, milliseconds=1)
    assert printed("table", capsys, answer) == (
        'a.png   {"p": 0.987654, "all": [0.333333, 12345678, 1e-09, 1234.57], "é": true}\n'
    )
    out = printed("json", capsys, answer)
    assert json.loads(out)[0]["prediction"] == value
    assert "é" in out


def test_bytes_are_printed_as_base64(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Prediction(name="a.png", value=b"\x89PNG\r\n\x1a\n\xff", milliseconds=1)
    with pytest.raises(
        PredictError, match=r"a\.png: the response has 9 bytes \(image/png\), not JSON or text"
    ):
        print_answers([answer], "table")
    assert json.loads(printed("json", capsys, answer))[0]["prediction"] == "iVBORw0KGgr/"
