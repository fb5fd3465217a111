"""Compares what a command printed with `-o json` with the JSON Schema that is documented for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

from jsonschema import Draft202012Validator

from docs.outputs import OUTPUTS, schemas


def check_output(arguments: Sequence[str], out: str, err: str = "") -> None:
    """Fail if a command was run with `-o json` and its output or its error does not match its schema."""
    pairs = list(zip(arguments, [*arguments[1:], ""], strict=True))
    if out and (("-o", "json") in pairs or ("--output", "json") in pairs):
        _validator(_command(arguments)).validate(json.loads(out))
    if err.startswith("{"):
        _validator("error").validate(json.loads(err))


def _command(arguments: Sequence[str]) -> str:
    """Return the documented name of a command: two words of a group, and a dry run by itself."""
    if "--dry-run" in arguments:
        return f"{arguments[0]} --dry-run"
    two_words = " ".join(arguments[:2])
    return two_words if two_words in OUTPUTS else arguments[0]


@cache
def _validator(command: str) -> Draft202012Validator:
    found = schemas()
    return Draft202012Validator({"$defs": found["$defs"], **found["properties"][command]})
