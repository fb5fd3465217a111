"""A requirements file: whether pip can make sense of it, and which modules it brings."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import Struct

from deployer.errors import ArchiveError

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_REQUIREMENT = re.compile(rf"(?P<name>{_NAME})\s*(?:\[[^\]]*\])?\s*(?:[<>!~]=?|===?|[(@;]|--|$)")
_INCLUDED = re.compile(r"(?P<option>-r|-c|--requirement|--constraint)[\s=]*(?P<file>.+)")
_COMMENT = re.compile(r"(^|\s+)#.*$")
_EDITABLE = ("-e", "--editable")
_PACKAGE_FILES = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2")
_LOGIN = re.compile(r"://(?P<user>[^\s/@:]*)(?::(?P<password>[^\s/@]*))?@")
_TOKEN_FROM = 20  # letters of a user without a password: so long is a token, and no name of anybody's
_VARIABLES = re.compile(r"(\$\{[A-Z0-9_]+\})*")  # as pip knows them

# Modules whose distribution is called otherwise, and what its name begins with.
_DISTRIBUTIONS = {
    "Bio": "biopython",
    "Crypto": "pycryptodome",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-",
    "fitz": "pymupdf",
    "ignite": "pytorch-ignite",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}


class Requirements(Struct, frozen=True):
    """What a requirements file asks for.

    `distributions` by their normal names; `included` are the files that it names itself, with the line;
    `open` says that it may bring more than these: it names places or further files.
    """

    distributions: tuple[str, ...] = ()
    included: tuple[tuple[int, str], ...] = ()
    open: bool = False


def read_requirements(content: bytes, path: str) -> Requirements:
    """Read a requirements file. `ArchiveError` with file and line where pip would stop."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArchiveError("the requirements file is not UTF-8", where=path) from error
    refuse_credentials(text, path)
    distributions: list[str] = []
    included: list[tuple[int, str]] = []
    unseen = False
    lines = list(_logical_lines(text))
    for number, line in lines:
        if match := _INCLUDED.fullmatch(line):
            included.append((number, match["file"].strip()))
            unseen = unseen or match["option"] in ("-r", "--requirement")
        elif line.startswith("-") and not line.startswith(_EDITABLE):
            continue  # another option
        elif (named := _REQUIREMENT.match(line)) and not named["name"].endswith(_PACKAGE_FILES):
            distributions.append(_normal(named["name"]))
        elif "/" in line or line.startswith(_EDITABLE) or line.endswith(_PACKAGE_FILES):
            unseen = True
        else:
            raise ArchiveError(
                f"pip cannot read {line!r}",
                where=f"{path}:{number}",
                hint="write one requirement a line, such as `scikit-learn==1.5.2`",
            )
    if not lines:
        raise ArchiveError(
            "the requirements file asks for nothing",
            where=path,
            hint="name what the handler needs, or leave model.requirements-file out",
        )
    return Requirements(tuple(distributions), tuple(included), unseen)


def refuse_credentials(text: str, path: str) -> None:
    """Keep what opens an index out of the archive, which all who may read the model store can read.

    `ArchiveError` with file and line.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        for found in _LOGIN.finditer(line):
            secret = found["password"] or (found["user"] if len(found["user"]) >= _TOKEN_FROM else "")
            if not _VARIABLES.fullmatch(secret):
                raise ArchiveError(
                    "credentials in a URL would be in the archive, for all to read",
                    where=f"{path}:{number}",
                    hint="write ${NAME} in their place: pip puts in the serving container's variable NAME",
                )


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line that says something, continued lines joined, with the number of its first."""
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


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def provides(distribution: str, module: str) -> bool:
    """Whether a distribution may bring a module: known to, or called alike."""
    if distribution.startswith(_DISTRIBUTIONS.get(module, "?")):
        return True
    parts = [part for part in distribution.split("-") if part not in ("py", "python")] or [distribution]
    alike = {_bare("".join(parts[:count])) for count in range(1, len(parts) + 1)}
    return _bare(_normal(module).replace("-", "")) in alike


def _bare(name: str) -> str:
    return name.removeprefix("py") or name
