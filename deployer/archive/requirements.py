"""Checks a requirements file for lines that pip cannot read, and for credentials."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import Struct

from deployer.errors import ArchiveError
from deployer.leaks import has_login

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_REQUIREMENT = re.compile(rf"(?P<name>{_NAME})\s*(?:\[[^\]]*\])?\s*(?:[<>!~]=?|===?|[(@;]|--|$)")
_INCLUDED = re.compile(r"(?P<option>-r|-c|--requirement|--constraint)[\s=]*(?P<file>.+)")
_COMMENT = re.compile(r"(^|\s+)#.*$")
_EDITABLE = ("-e", "--editable")
_PACKAGE_FILES = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2")


class Requirements(Struct, frozen=True):
    """The content of a requirements file.

    `distributions` have normalized names. `included` are the files that it names, with the line. `open` is
    true if it can install more than these: it names URLs, folders or other requirements files.
    """

    distributions: tuple[str, ...] = ()
    included: tuple[tuple[int, str], ...] = ()
    open: bool = False


def read_requirements(content: bytes, path: str) -> Requirements:
    """Read a requirements file. `ArchiveError`, with file and line, if pip cannot read it."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArchiveError("the requirements file is not UTF-8", where=path) from error
    refuse_credentials(text, path)
    distributions: list[str] = []
    included: list[tuple[int, str]] = []
    is_open = False
    lines = list(_logical_lines(text))
    for number, line in lines:
        if match := _INCLUDED.fullmatch(line):
            included.append((number, match["file"].strip()))
            is_open = is_open or match["option"] in ("-r", "--requirement")
        elif line.startswith("-") and not line.startswith(_EDITABLE):
            continue  # another option
        elif (named := _REQUIREMENT.match(line)) and not named["name"].endswith(_PACKAGE_FILES):
            distributions.append(re.sub(r"[-_.]+", "-", named["name"]).lower())
        elif "/" in line or line.startswith(_EDITABLE) or line.endswith(_PACKAGE_FILES):
            is_open = True
        else:
            hint = "Write one requirement per line, such as `scikit-learn==1.5.2`."
            raise ArchiveError(f"invalid requirement {line!r}", where=f"{path}:{number}", hint=hint)
    if not lines:
        hint = "List the packages that the handler needs, or remove model.requirements-file."
        raise ArchiveError("the requirements file is empty", where=path, hint=hint)
    return Requirements(tuple(distributions), tuple(included), is_open)


def refuse_credentials(text: str, path: str) -> None:
    """Raise `ArchiveError`, with file and line, for credentials: they would be in the model store."""
    for number, line in enumerate(text.splitlines(), start=1):
        if has_login(line):
            raise ArchiveError(
                "a URL contains credentials, which everyone who reads the archive could read",
                where=f"{path}:{number}",
                hint="Write ${NAME} instead. pip replaces it by the serving container's variable NAME.",
            )


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line that is not blank, continued lines joined, with the number of its first."""
    started, pending = 0, ""
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        started = started if pending else number
        pending += _COMMENT.sub("", line).strip()
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        if pending.strip():
            yield started, pending.strip()
        pending = ""
