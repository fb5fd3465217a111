"""The output of `kdeploy predict`, in every format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from deployer.cli.options import Output
from deployer.cli.predictions import print_answers
from deployer.cli.saving import Saver
from deployer.errors import InputRefusedError, PredictError
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
        assert any(isinstance(one, Failure) or one.value == {"response": "denied"} for one in answers)
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


def test_failures_with_different_hints_have_none_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    failures = [Failure(name=hint, error=PredictError("refused", where=hint, hint=hint)) for hint in "ab"]
    with pytest.raises(PredictError) as caught:
        print_answers(failures, "table")
    assert caught.value.hint == "Run the same command with one of these inputs to see its hint."


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
    with pytest.raises(PredictError, match=r"a\.png: the answer is 9 bytes of image/png, not JSON or text"):
        print_answers([answer], "table")
    assert json.loads(printed("json", capsys, answer))[0]["prediction"] == "iVBORw0KGgr/"


DETECTIONS = [
    {"label": "cat", "score": 0.98765, "box": [10, 20, 110, 220]},
    {"label": "a long label", "score": 0.5, "box": [0, 0, 640, 480], "mask": [[1, 0, 0], [0, 1, 0]]},
]


def test_detections_are_printed_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Prediction(name="a.txt", value=DETECTIONS, milliseconds=1)
    assert printed("table", capsys, answer) == (
        "a.txt   2 found\n"
        "  LABEL          SCORE    BOX             MASK\n"
        "  cat            0.9877   10 20 110 220\n"
        "  a long label   0.5000   0 0 640 480     33.3%\n"
    )
    assert json.loads(printed("json", capsys, answer))[0]["prediction"] == DETECTIONS


def test_classes_are_printed_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Prediction(name="a.txt", value={"tabby": 0.75, "lynx": 0.125}, milliseconds=1)
    assert printed("table", capsys, answer) == (
        "a.txt   2 classes\n  LABEL   SCORE\n  tabby   0.7500\n  lynx    0.1250\n"
    )


def test_nothing_found_refused_and_failed_are_different(capsys: pytest.CaptureFixture[str]) -> None:
    for value in ([], None, {"response": "None"}, {"boxes": [], "labels": [], "scores": []}):
        answer = Prediction(name="a.jpg", value=value, milliseconds=1)
        assert printed("table", capsys, answer) == "a.jpg   nothing found\n"
    denied = Prediction(name="a.jpg", value={"response": "denied"}, milliseconds=1)
    failed = Prediction(name="a.jpg", value={"error": "no GPU"}, milliseconds=1)
    with pytest.raises(InputRefusedError, match="the model refused this input: denied"):
        print_answers([denied], "table")
    with pytest.raises(PredictError, match="the handler answers with an error: no GPU") as caught:
        print_answers([failed], "table")
    assert caught.value.exit_code != InputRefusedError.exit_code
    out = printed("json", capsys, denied, ANSWERS[1])
    assert json.loads(out)[0]["prediction"] == {"response": "denied"}
    assert json.loads(out)[0]["error"] == "a.jpg: the model refused this input: denied"


def test_an_image_in_base64_is_not_printed_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Prediction(name="a.png", value="iVBORw0KGgr/", milliseconds=1)
    with pytest.raises(PredictError, match="the answer is 9 bytes of image/png"):
        print_answers([answer], "table")


def test_each_answer_is_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "in" / "a.png"
    picture.parent.mkdir()
    Image.new("RGB", (640, 480)).save(picture)
    found = Prediction(name=str(picture), value=DETECTIONS[:1], milliseconds=1)
    answers = [
        found,
        Prediction(name="b/a.png", value=b"\x89PNG\r\n\x1a\n", milliseconds=1),
        Prediction(name="x.txt", value="très bien", milliseconds=1),
        Prediction(name="in/rows.jsonl:3", value={"x": 1}, milliseconds=1),
        Prediction(name="stdin", value=b"\xff", milliseconds=1),
        Prediction(name="d.jpg", value="iVBORw0KGgr/", milliseconds=1),
        Prediction(name="c.png", value=[], milliseconds=1),
    ]
    out = tmp_path / "new" / "out"
    print_answers(answers, "table", Saver(out, {str(picture): picture}, upright=False))
    assert sorted(path.name for path in out.iterdir()) == [
        "a-2.png",
        "a.png",
        "c.json",
        "d.png",
        "rows-3.json",
        "stdin.bin",
        "x.txt",
    ]
    assert (out / "x.txt").read_text() == "très bien"
    assert json.loads((out / "rows-3.json").read_text()) == {"x": 1}
    shown = capsys.readouterr().out
    assert f"{picture}   1 found   saved to {out / 'a.png'}\n" in shown
    assert f"b/a.png   8 bytes of image/png   saved to {out / 'a-2.png'}\n" in shown
    before = picture.read_bytes()
    print_answers([found], "json", Saver(picture.parent, {str(picture): picture}, upright=False))
    assert json.loads(capsys.readouterr().out)[0]["saved"] == str(picture.with_name("a-2.png"))
    assert picture.read_bytes() == before
    assert Image.open(out / "a.png").getpixel((10, 100)) == (230, 25, 75)
    assert Image.open(picture.with_name("a-2.png")).size == (640, 480)


def test_a_picture_that_cannot_be_read_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (picture := tmp_path / "a.dcm").write_bytes(b"DICM")
    answer = Prediction(name="a.dcm", value=DETECTIONS[:1], milliseconds=1)
    print_answers([answer], "table", Saver(tmp_path / "out", {"a.dcm": picture}, upright=False))
    shown = capsys.readouterr()
    assert "warning: " in shown.err
    assert "cannot draw on the picture" in shown.err
    assert "10 20 110 220" in shown.out
    assert json.loads((tmp_path / "out" / "a.json").read_text()) == DETECTIONS[:1]
