"""Detections, classes and masks, in the spellings of common libraries."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.predict import boxes, masks, vision
from deployer.predict.masks import Mask, image_of, mask_of
from deployer.predict.vision import Found, Size, denial, found_in, is_nothing, own_error

SIZE = Size(640, 480)
CAT = Found(label="cat", score=0.9, box=(10, 20, 110, 220))
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n rest").decode()


@pytest.mark.parametrize(
    "value",
    [
        [{"label": "cat", "score": 0.9, "box": [10, 20, 110, 220]}],
        {"label": "cat", "score": 0.9, "box": [10, 20, 110, 220], "track": 7},
        [{"category_name": "cat", "bbox": [10, 20, 100, 200], "score": 0.9, "image_id": 1}],
        [
            {
                "Label": "cat",
                "Confidence": 0.9,
                "BoundingBox": {"Left": 10, "Top": 20, "Width": 100, "Height": 200},
            }
        ],
        [{"label": "cat", "score": 0.9, "box": {"xmin": 10, "ymin": 20, "xmax": 110, "ymax": 220}}],
        [{"name": "cat", "confidence": 0.9, "box": {"x1": 10, "y1": 20, "x2": 110, "y2": 220}}],
        [{"name": "cat", "conf": 0.9, "xmin": 10, "ymin": 20, "xmax": 110, "ymax": 220}],
        [{"label": "cat", "prob": 0.9, "x": 10, "y": 20, "w": 100, "h": 200}],
        [{"class": "cat", "confidence": 0.9, "x": 60, "y": 120, "width": 100, "height": 200}],
        [{"label": "cat", "score": 0.9, "xywh": [60, 120, 100, 200]}],
        [{"label": "cat", "score": 0.9, "box": [60, 120, 100, 200], "box_format": "cxcywh"}],
        [{"label": "cat", "score": 0.9, "bbox": [10, 20, 110, 220], "bbox_format": "XYXY"}],
        [{"label": "cat", "score": 0.9, "box": [[10, 20], [110, 20], [110, 220], [10, 220]]}],
        [{"cat": [10, 20, 110, 220], "score": 0.9}],
        {"boxes": [[10, 20, 110, 220]], "labels": ["cat"], "scores": [0.9]},
        [{"boxes": [[10, 20, 110, 220]], "labels": ["cat"], "scores": [0.9]}],
        {"boxes": [[10, 20, 100, 200]], "labels": ["cat"], "scores": [0.9], "box_format": "xywh"},
        {"bboxes": [[10, 20, 110, 220]], "labels": ["cat"], "scores": [0.9]},
        {"xyxy": [[10, 20, 110, 220]], "class_id": ["cat"], "confidence": [0.9]},
        {"detection_boxes": [[20, 10, 220, 110]], "detection_classes": ["cat"], "detection_scores": [0.9]},
        {"detections": [{"label": "cat", "score": 0.9, "box": [10, 20, 110, 220]}], "milliseconds": 3},
        {"response": {"boxes": [[10, 20, 110, 220]], "labels": ["cat"], "scores": [0.9]}},
    ],
)
def test_a_detection_in_each_spelling(value):
    [found] = found_in(value, SIZE)
    assert (found.label, found.score, found.box) == (CAT.label, CAT.score, CAT.box)


@pytest.mark.parametrize(
    ("box", "key", "expected"),
    [
        ([0.25, 0.5, 0.75, 1.0], "box", (160, 240, 480, 480)),
        ([0.25, 0.5, 0.5, 0.5], "bbox", (160, 240, 480, 480)),
        ([0.5, 0.75, 0.5, 0.5], "xywhn", (160, 240, 480, 480)),
        ([0.25, 0.5, 0.75, 1.0], "bbox", (160, 240, 480, 480)),  # as width and height it leaves the picture
        ([300, 200, 600, 400], "bbox", (300, 200, 600, 400)),  # so does this
        ([300, 200, 100, 50], "box", (300, 200, 400, 250)),  # backward as corners
        ([0, 0, 1, 1], "box", (0, 0, 1, 1)),  # whole numbers are pixels
    ],
)
def test_the_form_of_a_box_is_found_out(box, key, expected):
    [found] = found_in([{"label": "cat", "score": 0.9, key: box}], SIZE)
    assert found.box == pytest.approx(expected)


def test_rows_of_yolo_are_boxes_of_a_picture():
    rows = [[10, 20, 110, 220, 0.9, 0], [1, 2, 3.5, 4, 0.5, 16]]
    assert found_in(rows, SIZE) == [
        Found(label="0", score=0.9, box=(10, 20, 110, 220)),
        Found(label="16", score=0.5, box=(1, 2, 3.5, 4)),
    ]
    assert found_in(rows) is None
    assert found_in([[10, 20, 5, 220, 0.9, 0]], SIZE) is None
    assert found_in([[10, 20, 30, 220, 7, 0]], SIZE) is None


def test_without_a_picture_fractions_stay():
    [found] = found_in([{"label": "cat", "box": [0.25, 0.5, 0.75, 1.0]}])
    assert found.box == (0.25, 0.5, 0.75, 1.0)


def test_the_boxes_of_one_answer_have_one_form():
    answer = [
        {"label": "a", "score": 0.9, "bbox": [10, 10, 20, 20]},
        {"label": "b", "score": 0.9},
        {"label": "c", "score": 0.8, "bbox": [400, 300, 600, 400]},
    ]
    assert [one.box for one in found_in(answer, SIZE)] == [(10, 10, 20, 20), None, (400, 300, 600, 400)]


@pytest.mark.parametrize(
    "value",
    [
        [{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.1}],
        {"cat": 0.9, "dog": 0.1},
        {"labels": ["cat", "dog"], "scores": [0.9, 0.1], "sequence": "a text"},
        {"result": {"cat": 0.9, "dog": 0.1}},
    ],
)
def test_classes_in_each_spelling(value):
    assert found_in(value) == [Found(label="cat", score=0.9), Found(label="dog", score=0.1)]


def test_one_class():
    assert found_in({"label": 7, "score": 1}) == [Found(label="7", score=1.0)]
    assert found_in({"class": "seven", "confidence": 0.5}) == [Found(label="seven", score=0.5)]


@pytest.mark.parametrize(
    "value",
    [
        7,
        "seven",
        True,
        [1, 2],
        [[1, 2], [3, 4]],
        {"digit": 3, "word": "three"},
        {"label": "cat", "score": 0.9, "age": 3},
        {"label": "cat", "score": "high"},
        {"label": ["cat"], "score": 0.9},
        {"label": "cat", "score": True},
        {"cat": 0.9},
        {"cat": 0.9, "dog": 0.9},
        {"cat": 0.0, "dog": 0.0},
        {"cat": 0.9, "dog": 1},
        {"cat": 0.9, "dog": 3.0},
        {"boxes": [[1, 2, 3, 4]], "labels": ["a", "b"], "scores": [1, 2]},
        {"boxes": [[1, 2, 3]], "labels": ["a"]},
        {"boxes": [[1, 2, 3, float("nan")]]},
        {"labels": ["a"]},
        [{"label": "cat", "score": 0.9}, 3],
        [{"label": "cat", "box": {"a": 1}}],
        [[0, 1] * 8] * 3,
        [[0, 1] * 8, *[[0, 1]] * 9],
        [[0, 1]] * 9,
        [list(range(row, row + 200)) for row in range(9)],
        [{"mask": "no image"}],
    ],
)
def test_other_answers_are_not_tables(value):
    assert found_in(value, SIZE) is None


# Masks


@pytest.mark.parametrize(
    "value",
    [
        [[0, 1, 1], [0, 1, 1]],
        [[[0, 1, 1], [0, 1, 1]]],
        [[False, True, True], [False, True, True]],
        [[0.1, 0.9, 0.7], [0.5, 0.6, 1.0]],
        {"counts": [2, 4], "size": [2, 3]},
        {"counts": "24", "size": [2, 3]},
    ],
)
def test_a_mask_of_pixels_in_each_form(value):
    assert mask_of(value) == Mask(width=3, height=2, bits=bytes([0, 255, 255] * 2))


@pytest.mark.parametrize(
    "value",
    [
        [[1, 2], [3, 4], [5, 6]],
        [[1, 2, 3, 4, 5, 6]],
        [1, 2, 3, 4, 5, 6],
        {"x": [1, 3, 5], "y": [2, 4, 6]},
    ],
)
def test_a_polygon_in_each_form(value):
    assert mask_of(value) == Mask(polygons=(((1, 2), (3, 4), (5, 6)),))


def test_two_polygons_of_the_same_length_are_not_pixels():
    [first, second] = mask_of([[1, 2, 30, 4, 5, 6], [7, 8, 9, 10, 11, 12]]).polygons
    assert (first[1], second[0]) == ((30, 4), (7, 8))


def test_run_lengths_as_text_are_those_of_pycocotools():
    """The text is what pycocotools encodes for a disk of 7 x 9 pixels."""
    counts = [10, 3, 5, 5, 4, 5, 4, 5, 5, 3, 14]
    mask = mask_of({"counts": coco_text(counts), "size": [9, 7]})
    assert mask == mask_of({"counts": counts, "size": [9, 7]})
    assert mask.bits.count(255) == 21
    large = [5, 1000, 3, 70, 100_000 - 1078]
    assert mask_of({"counts": coco_text(large), "size": [100, 1000]}).bits.count(255) == 1070


def coco_text(counts: list[int]) -> str:
    """Encode run lengths as COCO's C code does (rleToString)."""
    text = ""
    for index, count in enumerate(counts):
        number, more = count - (counts[index - 2] if index > 2 else 0), True
        while more:
            six = number & 0x1F
            number >>= 5
            more = number != -1 if six & 0x10 else number != 0
            text += chr((six | 0x20 if more else six) + 48)
    return text


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "x",
        {"x": [1], "y": 2},
        {"x": [1, 2], "y": [1]},
        {"x": [1, 2], "y": [1, 2]},
        {"counts": [1, 2], "size": [2, 2]},
        {"counts": [1, -1, 4], "size": [2, 2]},
        {"counts": [4], "size": [2]},
        {"counts": [4], "size": [0, 4]},
        {"counts": [2**40], "size": [2**20, 2**20]},
        {"counts": "\x7f\n", "size": [2, 2]},
        {"counts": 4, "size": [2, 2]},
        [["a", "b", "c"], ["d", "e", "f"]],
        [[1, 2, 3], [4, 5, 6]],
        [[0, 0, 0], 1],
    ],
)
def test_an_invalid_mask_is_ignored(value):
    assert mask_of(value) is None


def test_an_image_in_base64():
    assert image_of(PNG) == image_of(f"data:image/png;base64,{PNG}") == base64.b64decode(PNG)
    assert image_of(PNG[:-1] + "!") is None
    assert image_of("iVBO") is None
    [found] = found_in([{"label": "cat", "score": 0.9, "mask": PNG}])
    assert found.mask == Mask(image=base64.b64decode(PNG))


def test_masks_with_boxes_and_by_themselves():
    rows = [[0, 1, 1], [0, 1, 1]]
    torchvision = {"boxes": [[1, 2, 30, 40]], "labels": [3], "scores": [0.5], "masks": [[rows]]}
    [found] = found_in(torchvision, SIZE)
    assert (found.label, found.box, found.mask) == ("3", (1, 2, 30, 40), mask_of(rows))
    [yolo] = found_in([{"segments": {"x": [1, 3, 5], "y": [2, 4, 6]}}])
    assert yolo.label == ""
    assert yolo.mask.polygons


def test_a_map_of_classes_has_a_mask_for_each_class():
    rows = [[0] * 4 + [2] * 6] * 6 + [[5] * 10] * 4
    two, five = found_in(rows, SIZE)
    assert (two.label, five.label) == ("class 2", "class 5")
    assert (two.mask.bits.count(255), five.mask.bits.count(255)) == (36, 40)
    assert found_in(rows) is None  # not a picture


# Answers that find nothing, and that refuse or fail


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        "None",
        "none",
        {"response": "None"},
        {"response": None},
        {"response": "None", "milliseconds": 3},
        {"detections": []},
        {"predictions": {}},
        {"boxes": [], "labels": [], "scores": []},
        {"detections": [], "milliseconds": 3},
    ],
)
def test_nothing_was_found(value):
    assert is_nothing(value)
    assert denial(value) is own_error(value) is None


@pytest.mark.parametrize(
    "value", [0, False, "", "nothing", {"response": "cat"}, {"x": None}, {"result": None, "score": 0.3}, [[]]]
)
def test_other_answers_found_something(value):
    assert not is_nothing(value)


@pytest.mark.parametrize(
    "value", ["denied", {"response": "Denied"}, {"status": "rejected", "reason": "blurred"}]
)
def test_the_model_refused(value):
    assert denial(value).lower() in ("denied", "rejected")


def test_a_label_is_not_a_refusal():
    assert denial({"label": "denied", "score": 0.9}) is None
    assert denial({"response": 7}) is None


def test_a_handler_can_answer_with_an_error():
    assert own_error({"error": "no face", "code": 3}) == "no face"
    assert own_error({"response": "Failed"}) == "Failed"
    assert own_error({"status": "error", "message": "no GPU"}) == "no GPU"
    assert own_error({"status": "ok", "response": "cat"}) is None
    assert own_error({"error": 0.03}) is own_error({"error": " "}) is own_error("error") is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["box", "bbox", "label", "score", "mask", "boxes", "x", "y"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_any_answer_is_read(value):
    found = found_in(value, SIZE)
    assert found is None or all(isinstance(one, Found) for one in found)
    is_nothing(value), denial(value), own_error(value)
    json.dumps(value)


def test_the_modules_are_pure():
    for module in (boxes, masks, vision):
        assert not {"os", "pathlib", "PIL", "io"} & set(vars(module))
