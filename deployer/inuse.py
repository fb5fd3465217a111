"""Finds the releases that a document names, such as in a storage URI or a journal entry. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from deployer.config import MODEL_NAME_MAX
from deployer.observed import Document
from deployer.release import ID_PATTERN

_WORD = re.compile(r"[-A-Za-z0-9_.]+")
_NAME_AT_END = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]*$")


def releases_named(document: Any) -> Iterator[str]:
    """Yield `NAME/ID` for each path in a document that has a release's folder, such as a storage URI."""
    for before, after in pairwise(json.dumps(document).split("/")):
        word, name = _WORD.match(after), _NAME_AT_END.search(before[-MODEL_NAME_MAX:])
        if word and name and re.match(ID_PATTERN, word[0]):
            yield f"{name[0]}/{word[0]}"


def model_of(service: Document) -> str | None:
    """Return the model of an InferenceService whose storage URI is a release's folder; None for any other."""
    uri = service.get("spec", {}).get("predictor", {}).get("model", {}).get("storageUri", "")
    return next((label.partition("/")[0] for label in releases_named([uri])), None)
