"""Reads boxes of detections in common forms, as (left, top, right, bottom) in pixels. Pure.

A list of four numbers is `[x1, y1, x2, y2]`; COCO's `bbox` is `[x, y, width, height]`, unless one of them
leaves the picture that way. The key `xywh` is from the center, as in YOLO. A `box_format` decides: `xyxy`,
`xywh`, `cxcywh` or `yxyx`. If every number is at most 1, boxes are fractions of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

Box = tuple[float, float, float, float]

_KEYS = (
    *("box", "bbox", "boxes", "bounding_box", "boundingbox", "rect", "xyxy", "xyxyn", "xywh", "xywhn"),
    *("cxcywh", "yxyx", "bboxes", "pred_boxes", "location"),
)
_FORMATS: dict[str, Callable[[float, float, float, float], Box]] = {
    "xyxy": lambda a, b, c, d: (a, b, c, d),
    "xywh": lambda a, b, c, d: (a, b, a + c, b + d),
    "cxcywh": lambda a, b, c, d: (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
    "yxyx": lambda a, b, c, d: (b, a, d, c),
}
_OF_KEY = {
    "xywh": "cxcywh",
    "xywhn": "cxcywh",
    "cxcywh": "cxcywh",
    "yxyx": "yxyx",
    "xyxy": "xyxy",
    "xyxyn": "xyxy",
}
_OBJECTS = (
    (("xmin", "ymin", "xmax", "ymax"), "xyxy"),
    (("x_min", "y_min", "x_max", "y_max"), "xyxy"),
    (("x1", "y1", "x2", "y2"), "xyxy"),
    (("left", "top", "right", "bottom"), "xyxy"),
    (("left", "top", "width", "height"), "xywh"),
    (("cx", "cy", "w", "h"), "cxcywh"),
    (("x_center", "y_center", "width", "height"), "cxcywh"),
    (("x", "y", "w", "h"), "xywh"),
    (("x", "y", "width", "height"), "xywh"),
)


def boxes_of(entries: Sequence[Mapping[str, Any]], size: tuple[int, int] | None) -> list[Box] | None:
    """Return the box of each entry, or None if one has none. `size` is the picture's width and height."""
    raw = [_raw(entry) for entry in entries]
    found = [one for one in raw if one]
    if len(found) < len(entries):
        return None
    form = _guess({form for _, form in found}, [values for values, _ in found], size)
    boxes = [_FORMATS[form if own in ("bbox", "box") else own](*values) for values, own in found]
    fractions = all(0 <= edge <= 1 for box in boxes for edge in box) and any(
        edge % 1 for box in boxes for edge in box
    )
    if fractions and size:
        width, height = size
        boxes = [(a * width, b * height, c * width, d * height) for a, b, c, d in boxes]
    return boxes


def numbers(value: Any, count: int) -> list[float] | None:
    """Return a list of so many numbers, else None."""
    if not isinstance(value, list) or len(value) != count:
        return None
    usual = all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)
    return value if usual and all(map(isfinite, value)) else None


def _raw(entry: Mapping[str, Any]) -> tuple[list[float], str] | None:
    """Return the four numbers of an entry's box and their format; `box` and `bbox` are to be guessed."""
    for key in _KEYS:
        value = entry.get(key)
        if isinstance(value, Mapping):
            return _of_object(value)
        if values := numbers(value, 4):
            named = str(entry.get("box_format") or entry.get("bbox_format") or "").lower()
            default = "bbox" if key == "bbox" else "box"
            return values, named if named in _FORMATS else _OF_KEY.get(key, default)
        if isinstance(value, list) and len(value) > 2 and all(numbers(point, 2) for point in value):
            xs, ys = zip(*value, strict=True)
            return [min(xs), min(ys), max(xs), max(ys)], "xyxy"
    found = _of_object(entry)
    # Roboflow's x and y are the center.
    centered = found and found[1] == "xywh" and {"x", "confidence", "class"} <= set(entry)
    return (found[0], "cxcywh") if found and centered else found


def _of_object(value: Mapping[str, Any]) -> tuple[list[float], str] | None:
    named = {str(key).lower(): one for key, one in value.items()}
    for keys, form in _OBJECTS:
        if values := numbers([named.get(key) for key in keys], 4):
            return values, form
    return None


def _guess(forms: set[str], values: Sequence[Sequence[float]], size: tuple[int, int] | None) -> str:
    """Return the format of lists that do not name it."""
    backward = any(right <= left or bottom <= top for left, top, right, bottom in values)
    if backward or "bbox" not in forms:
        return "xywh" if backward else "xyxy"
    width, height = size or (float("inf"), float("inf"))
    if max((number for row in values for number in row), default=0) <= 1:
        width = height = 1
    leaves = any(x + w > width + 1e-3 * width or y + h > height + 1e-3 * height for x, y, w, h in values)
    return "xyxy" if leaves else "xywh"
