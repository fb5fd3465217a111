"""Prints predictions on stdout, one line for each input, and each failure once on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from deployer.cli.options import Output
from deployer.cli.printers import print_rows
from deployer.cli.terminal import cell, show, tell, warn

if TYPE_CHECKING:
    from deployer.predict import Failure, Prediction

DIGITS = 6  # significant digits of a number in a table


def print_answers(answers: Iterable[Prediction | Failure], output: Output) -> None:
    """Print each prediction when it arrives, or all as JSON.

    Raises the failure if there is one. If there are more, prints each when it arrives, and raises their
    number.
    """
    from deployer.predict import Failure

    shown: list[dict[str, Any]] = []
    failures: list[Failure] = []
    for given in answers:
        answer = _bytes_refused(given) if output == "table" else given
        if answer.resized:
            warn(answer.resized.note, label="")
        outcome: dict[str, Any]
        if isinstance(answer, Failure):
            failures.append(answer)
            outcome = {"error": str(answer.error)}
            for one in failures if len(failures) == 2 else failures[2:][-1:]:
                tell(f"error: {one.error}")
        else:
            outcome = {"prediction": answer.value, "milliseconds": answer.milliseconds}
            if output == "table":
                show(_line(answer))
        shown.append({"image": answer.name, **outcome, "resized": answer.resized})
    if output != "table" and (not failures or len(shown) > 1):  # the error has it all
        print_rows(output, [], [], shown, [answer["image"] for answer in shown])
    if len(failures) == 1:
        raise failures[0].error
    if failures:
        first = failures[0].error
        raise type(first)(f"{len(failures)} of {len(shown)} requests failed", hint=first.hint)


def _bytes_refused(answer: Prediction | Failure) -> Prediction | Failure:
    """Return a failure for a prediction that is neither JSON nor text."""
    from deployer.errors import PredictError
    from deployer.predict import Failure
    from deployer.predict.content import sniff

    value = getattr(answer, "value", None)
    if not isinstance(value, bytes):
        return answer
    error = PredictError(
        f"the response has {len(value)} bytes ({sniff(value)}), not JSON or text",
        where=answer.name,
        hint="Run it with `-o json`, which prints them as base64.",
    )
    return Failure(name=answer.name, error=error, milliseconds=answer.milliseconds, resized=answer.resized)


def _line(answer: Prediction) -> str:
    value = json.dumps(_rounded(answer.value), ensure_ascii=False)
    resized = answer.resized
    size = f"   resized by {resized.factor:g}: {resized.width}x{resized.height}" if resized else ""
    return cell(f"{answer.name}   {value}{size}")


def _rounded(value: Any) -> Any:
    """Return a JSON value with its numbers rounded for people."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return {key: _rounded(one) for key, one in value.items()} if isinstance(value, dict) else value
