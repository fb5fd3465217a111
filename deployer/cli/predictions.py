"""Prints predictions on stdout, and each failure once on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from deployer.cli.options import Output
from deployer.cli.printers import print_rows, print_table, size_text
from deployer.cli.terminal import cell, show, tell, warn

if TYPE_CHECKING:
    from deployer.cli.saving import Saver, Seen
    from deployer.errors import PredictError
    from deployer.predict import Failure, Prediction
    from deployer.predict.masks import Mask
    from deployer.predict.vision import Found

DIGITS = 6  # significant digits of a number in a table
_ONE_HINT = "Run the same command with one of these inputs to see its hint."


def print_answers(
    answers: Iterable[Prediction | Failure], output: Output, saver: Saver | None = None
) -> None:
    """Print each prediction when it arrives, or all as JSON.

    Raises the failure if there is one. If there are more, prints each when it arrives, and raises their
    number. A prediction that says that the model refused the input, or failed, is a failure.
    """
    from deployer.cli.saving import Saver
    from deployer.predict import Failure

    saver = saver or Saver(None, {}, upright=False)
    shown: list[dict[str, Any]] = []
    failures: list[PredictError] = []
    for answer in answers:
        if answer.resized:
            warn(answer.resized.note, label="")
        entry: dict[str, Any] = {"image": answer.name}
        if isinstance(answer, Failure):
            error: PredictError | None = answer.error
        else:
            entry |= {"prediction": answer.value, "milliseconds": answer.milliseconds}
            error = _refusal(answer) or _print_prediction(answer, output, saver, entry)
        if error:
            failures.append(error)
            entry["error"] = str(error)
            for one in failures if len(failures) == 2 else failures[2:][-1:]:
                tell(f"error: {one}")
        shown.append({**entry, "resized": answer.resized})
    if output != "table" and (not failures or len(shown) > 1):  # the error has it all
        print_rows(output, [], [], shown, [answer["image"] for answer in shown])
    if len(failures) == 1:
        raise failures[0]
    if failures:
        what = f"{len(failures)} of {len(shown)} requests failed"
        same = len({failure.hint for failure in failures}) == 1
        raise type(failures[0])(what, hint=failures[0].hint if same else _ONE_HINT)


def _refusal(answer: Prediction) -> PredictError | None:
    """Return the error for a prediction in which the model refuses the input, or reports an error."""
    from deployer.errors import InputRefusedError, PredictError
    from deployer.predict import vision

    if message := vision.own_error(answer.value):
        what = f"the handler answers with an error: {message}"
        return PredictError(what, where=answer.name, hint="Run `kdeploy logs` to see why.")
    if word := vision.denial(answer.value):
        hint = "The request reached the model. Compare the input with what it accepts."
        return InputRefusedError(f"the model refused this input: {word}", where=answer.name, hint=hint)
    return None


def _print_prediction(
    answer: Prediction, output: Output, saver: Saver, entry: dict[str, Any]
) -> PredictError | None:
    """Save a prediction and print it in a table. Returns the error if a table cannot show it."""
    from deployer.cli.saving import bytes_of

    seen = saver.look(answer) if saver.folder or output == "table" else None
    if path := saver.save(answer, seen):
        entry["saved"] = str(path)
    if output != "table":
        return None
    data = bytes_of(answer.value)
    if data and not path:
        return _not_printable(answer, data)
    after = [f"saved to {path}"] if path else []
    if resized := answer.resized:
        after.append(f"resized by {resized.factor:g}: {resized.width}x{resized.height}")
    show(cell("   ".join([answer.name, _summary(answer.value, seen, data), *after])))
    if seen and seen.found:
        _print_found(seen)
    return None


def _not_printable(answer: Prediction, data: bytes) -> PredictError:
    from deployer.errors import PredictError

    return PredictError(
        f"the answer is {_kind(data)}, not JSON or text",
        where=answer.name,
        hint="Add `--save FOLDER` to write it to a file, or `-o json` to print it in base64.",
    )


def _kind(data: bytes) -> str:
    from deployer.predict.content import sniff

    return f"{size_text(len(data))} of {sniff(data)}"


def _summary(value: object, seen: Seen | None, data: bytes | None) -> str:
    from deployer.predict.vision import is_nothing

    if data:
        return _kind(data)
    if is_nothing(value) or (seen and not seen.found):
        return "nothing found"
    if seen:
        count, shaped = len(seen.found), any(one.box or one.mask for one in seen.found)
        return f"{count} found" if shaped else f"{count} class{'es' if count > 1 else ''}"
    return json.dumps(_rounded(value), ensure_ascii=False)


def _print_found(seen: Seen) -> None:
    """Print detections, classes and masks as an indented table, without the columns that none of them has."""
    columns: dict[str, list[str]] = {
        "label": [one.label or "-" for one in seen.found],
        "score": ["" if one.score is None else f"{one.score:.4f}" for one in seen.found],
        "box": [_box_text(one, pixels=seen.canvas is not None) for one in seen.found],
        "mask": [_mask_text(one.mask) for one in seen.found],
    }
    used = {name: values for name, values in columns.items() if any(values)}
    print_table([*used], list(zip(*used.values(), strict=True)), lambda line: show(f"  {line}"))


def _box_text(one: Found, *, pixels: bool) -> str:
    return " ".join(f"{edge:.0f}" if pixels else f"{edge:.{DIGITS}g}" for edge in one.box or ())


def _mask_text(mask: Mask | None) -> str:
    if mask is None:
        return ""
    if mask.bits:
        return f"{mask.bits.count(255) / len(mask.bits):.1%}"
    return "polygon" if mask.polygons else "image"


def _rounded(value: Any) -> Any:
    """Return a JSON value with its numbers rounded for people."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return {key: _rounded(one) for key, one in value.items()} if isinstance(value, dict) else value
