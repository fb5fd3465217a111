"""The output of `kdeploy predict`, in every format."""

from __future__ import annotations

import json

import pytest
import yaml

from deployer.cli.options import Output
from deployer.cli.printers import print_answers
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
    assert "resized by 0.4213" in printed("table", capsys, failed)


@pytest.mark.parametrize("output", ["json", "yaml", "name"])
def test_if_the_only_file_fails_stdout_stays_empty(
    output: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(output, capsys, Failure(name="a.png", error=PredictError("refused"))) == ""
