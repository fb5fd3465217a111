"""Reads detections, classes and masks out of a prediction, in the spellings of common libraries. Pure.

| library | detections |
|---|---|
| COCO | `{"category_id", "bbox": [x, y, width, height], "score", "segmentation"}` |
| torchvision, transformers | `{"boxes": [[x1, y1, x2, y2], …], "labels": […], "scores": […], "masks": […]}` |
| Hugging Face's pipelines | `{"label", "score", "box": {"xmin", "ymin", "xmax", "ymax"}}`, `mask` as PNG |
| Ultralytics (YOLO) | `{"name", "confidence", "box": {"x1", "y1", "x2", "y2"}, "segments": {"x", "y"}}` |
| TorchServe's object_detector | `{"person": [x1, y1, x2, y2], "score"}` |
| the same, as rows | `[[x1, y1, x2, y2, confidence, class], …]` for a picture |
| TensorFlow | `detection_boxes` as `[ymin, xmin, ymax, xmax]`, `detection_classes`, `detection_scores` |

A box is in the pixels of the picture that the handler got: left, top, right, bottom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from deployer.predict.boxes import Box, boxes_of, numbers
from deployer.predict.masks import Mask, mask_of

_LABELS = (
    *("label", "class_name", "category_name", "name", "class", "category", "cls"),
    *("category_id", "class_id", "label_id"),
)
_SCORES = ("score", "confidence", "conf", "probability", "prob")
_MASKS = ("mask", "segmentation", "segments", "polygon", "polygons", "contour")
_LABEL_COLUMNS = (
    *("labels", "label", "class_names", "names", "classes", "pred_classes", "class", "detection_classes"),
    *("class_ids", "class_id", "pred_labels", "label_ids", "categories"),
)
_SCORE_COLUMNS = ("scores", "confidences", "confidence", "probabilities", "probs", "detection_scores")
_BOX_COLUMNS = ("boxes", "bboxes", "pred_boxes", "xyxy", "detection_boxes")
_MASK_COLUMNS = ("masks", "pred_masks", "segmentations", "segments")
_AROUND = (
    *("response", "result", "results", "prediction", "predictions", "output", "outputs"),
    *("detections", "objects", "annotations", "instances", "boxes", "faces"),
)
_DENIED = ("denied", "access denied", "refused", "rejected", "forbidden", "not allowed")
_FAILED = ("failed", "failure", "error")
_ALL = 1.01  # the sum of probabilities, rounded up
_CLASSES_MAX = 100  # COCO has 91
_SMALLEST_MAP = 8  # pixels of a side of a class map


class Found(Struct, frozen=True, kw_only=True):
    """One detection, class or mask."""

    label: str
    score: float | None = None
    box: Box | None = None
    mask: Mask | None = None


class Size(Struct, frozen=True):
    """Pixels of a picture."""

    width: int
    height: int


def found_in(value: Any, size: Size | None = None) -> list[Found] | None:
    """Return what a prediction found, or None if it has another form. `size` is that of the picture."""
    if (found := _entries(value)) and not (isinstance(value, Mapping) and _has_more(found[0])):
        return _of_entries(found, size)
    if isinstance(value, Mapping):
        table = _columns(value, size)
        if table is not None:
            return table
        if (inner := _inner(value)) is not None:
            return found_in(inner, size)
        return _probabilities(value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        return found_in(value[0], size)
    return _rows(value, size) or _class_map(value) if size else None


def is_nothing(value: Any) -> bool:
    """Return whether a prediction says that nothing was found: `[]`, null, `'None'`, or an object of one."""
    if isinstance(value, Mapping) and (len(value) == 1 or "response" in value):
        key = "response" if "response" in value else next(iter(value))
        return key in _AROUND and _is_empty(value[key])
    if isinstance(value, Mapping):
        return not value or any(value.get(key) == [] for key in ("detections", "objects", *_BOX_COLUMNS))
    return _is_empty(value)


def denial(value: Any) -> str | None:
    """Return the model's word if it refused the input, such as `denied`."""
    texts = [value.get(key) for key in (*_AROUND, "status")] if isinstance(value, Mapping) else [value]
    return next((text for text in texts if isinstance(text, str) and text.strip().lower() in _DENIED), None)


def own_error(value: Any) -> str | None:
    """Return the message of a handler that reports an error with an HTTP status of success.

    Its answer is `{"error": "…"}`, `{"response": "failed"}` or `{"status": "error", "message": "…"}`.
    """
    if not isinstance(value, Mapping):
        return None
    if any(str(value.get(key)).lower() in _FAILED for key in ("response", "status")):
        texts = [value.get(key) for key in ("error", "message", "reason", "detail", "response", "status")]
        return next(text for text in texts if isinstance(text, str))
    error = value.get("error")
    return error if isinstance(error, str) and error.strip() else None


def _is_empty(value: Any) -> bool:
    return value is None or value in ([], {}) or (isinstance(value, str) and value.lower() == "none")


def _inner(value: Mapping[str, Any]) -> Any:
    """Return the list or object around which a handler put a key."""
    inner = [value[key] for key in _AROUND if isinstance(value.get(key), list | dict) and value[key]]
    return inner[0] if len(inner) == 1 else None


def _entries(value: Any) -> list[dict[str, Any]] | None:
    """Return a list of objects with a label, a box or a mask each."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        return None
    entries = [_named(one) for one in value]
    return entries if all(map(_is_entry, entries)) else None


def _named(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry with its keys in lower case; TorchServe's has the label as the key of the box."""
    entry = {str(key).lower().replace("-", "_"): value for key, value in entry.items()}
    others = [key for key in entry if key not in _SCORES]
    if len(others) == 1 and len(entry) == 2 and numbers(entry[others[0]], 4):
        score = next(entry[key] for key in entry if key in _SCORES)
        return {"label": others[0], "score": score, "box": entry[others[0]]}
    return entry


def _is_entry(entry: Mapping[str, Any]) -> bool:
    if _score(entry) is not None and _first(entry, _LABELS) is not None:
        return not isinstance(_first(entry, _LABELS), list | dict)
    marked = _first(entry, _MASKS) is not None and mask_of(_first(entry, _MASKS)) is not None
    return marked or boxes_of([entry], None) is not None


def _of_entries(entries: Sequence[dict[str, Any]], size: Size | None) -> list[Found]:
    pixels = (size.width, size.height) if size else None
    boxes = boxes_of([one for one in entries if boxes_of([one], pixels)], pixels) or []
    left = iter(boxes)
    return [
        Found(
            label=_text(_first(entry, _LABELS)),
            score=_score(entry),
            box=next(left) if boxes_of([entry], pixels) else None,
            mask=mask_of(_first(entry, _MASKS)),
        )
        for entry in entries
    ]


def _columns(value: Mapping[str, Any], size: Size | None) -> list[Found] | None:
    """Return the rows of an object of lists: boxes, masks or labels, and scores."""
    named = {str(key).lower(): one for key, one in value.items()}
    lists = {
        kind: next(((key, named[key]) for key in keys if isinstance(named.get(key), list)), (kind, None))
        for kind, keys in (
            ("label", _LABEL_COLUMNS),
            ("score", _SCORE_COLUMNS),
            ("boxes", _BOX_COLUMNS),
            ("mask", _MASK_COLUMNS),
        )
    }
    counts = {len(column) for _, column in lists.values() if column is not None}
    shaped = lists["boxes"][1] is not None or lists["mask"][1] is not None
    labeled = lists["label"][1] is not None and lists["score"][1] is not None
    if len(counts) != 1 or not (shaped or labeled):
        return None
    key = "yxyx" if lists["boxes"][0].startswith("detection_") else lists["boxes"][0]
    rows = [
        {name if name != "boxes" else key: column[row] for name, (_, column) in lists.items() if column}
        for row in range(*counts)
    ]
    rows = [row | {"box_format": named["box_format"]} if "box_format" in named else row for row in rows]
    if not all(map(_is_entry, rows)):
        return None
    return _of_entries(rows, size)


def _probabilities(value: Mapping[str, Any]) -> list[Found] | None:
    """Return the classes of `{name: probability}`, as TorchServe's image_classifier answers."""
    shares = list(value.values())
    if len(shares) < 2 or not all(isinstance(one, float) and 0 <= one <= 1 for one in shares):
        return None
    if not 0 < sum(shares) <= _ALL:
        return None
    return [Found(label=str(name), score=share) for name, share in value.items()]


def _rows(value: Any, size: Size) -> list[Found] | None:
    """Return the boxes of YOLO's rows: x1, y1, x2, y2, confidence, class."""
    if not isinstance(value, list) or not all(numbers(row, 6) for row in value):
        return None
    if not all(row[0] < row[2] and row[1] < row[3] and 0 <= row[4] <= 1 for row in value):
        return None
    rows = [{"xyxy": row[:4], "score": row[4], "label": f"{row[5]:g}"} for row in value]
    return _of_entries(rows, size)


def _class_map(value: Any) -> list[Found] | None:
    """Return a mask for each class, except 0, of a picture of class numbers."""
    if not isinstance(value, list) or len(value) < _SMALLEST_MAP or not all(map(_is_row, value)):
        return None
    if len({len(row) for row in value}) != 1 or len(value[0]) < _SMALLEST_MAP:
        return None
    classes = sorted({number for row in value for number in row} - {0})
    if len(classes) > _CLASSES_MAX:  # a depth map, for example
        return None
    return [
        Found(label=f"class {number}", mask=mask_of([[pixel == number for pixel in row] for row in value]))
        for number in classes
    ]


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and all(isinstance(number, int) for number in row)


def _first(entry: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((entry[key] for key in keys if entry.get(key) is not None), None)


def _has_more(entry: Mapping[str, Any]) -> bool:
    """Return whether an answer of one class has other values, which a table of classes would hide."""
    shaped = boxes_of([entry], None) or _first(entry, _MASKS)
    return not shaped and not set(entry) <= {*_LABELS, *_SCORES}


def _score(entry: Mapping[str, Any]) -> float | None:
    score = _first(entry, _SCORES)
    return float(score) if isinstance(score, int | float) and not isinstance(score, bool) else None


def _text(label: Any) -> str:
    return "" if label is None else str(label)
