"""Which releases a document names: in a storage URI, a label, an entry of a history. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from deployer.config import NAME_MAX
from deployer.release import ID_PATTERN

_WORD = re.compile(r"[-A-Za-z0-9_.]+")
_NAME_AT_END = re.compile(r"[a-z][-a-z0-9]*$")


def releases_named(document: Any) -> Iterator[str]:
    """Yield `NAME/ID` for each path in a document of plain data that leads to a release, or through one.

    A storage URI is such a path, wherever in the document it is and however its beginning is written.
    """
    for before, after in pairwise(json.dumps(document).split("/")):
        word, name = _WORD.match(after), _NAME_AT_END.search(before[-NAME_MAX:])
        if word and name and re.match(ID_PATTERN, word[0]):
            yield f"{name[0]}/{word[0]}"
