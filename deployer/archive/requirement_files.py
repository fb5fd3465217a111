"""Adds a requirements file to an archive, and checks that what it names is there: pip looks for it there."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator

from deployer.archive.files import Files
from deployer.archive.requirements import (
    Requirements,
    decode_requirements,
    read_requirements,
    refuse_credentials,
)
from deployer.errors import ArchiveError

KEY = "kdeploy.toml: model.requirements-file"

_NOT_ASCII = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")  # the marks of UTF-16 and UTF-32
_FOR_PIP = re.compile(r"(?:.*/)?requirements[^/]*\.txt")
_NOT_FOR_SERVING = re.compile(r"[-_.](dev|test|doc|lint|build|train)", re.IGNORECASE)
_PROJECT = ("pyproject.toml", "setup.py")


def add_requirements(files: Files, file: str | None, minor: int) -> Requirements:
    """Add a requirements file, whose lines pip on Python 3.`minor` must be able to install.

    `ArchiveError`, with file and line, if it cannot, or if the archive lacks a file that a line names.
    """
    if file is None:
        return Requirements(warnings=tuple(_not_installed(files.members, (), None)))
    names = [files.add(KEY, file)]
    read: list[Requirements] = []
    for name in names:  # grows
        shown = files.shown(name)
        content = _in_utf8(files, name, shown)
        requirements = read_requirements(content, shown, minor=minor, by=read[0] if read else None)
        _check_places(files.members, requirements, shown)
        for included in _included(files, requirements, name, shown):
            if included not in names:
                names.append(included)
        read.append(requirements)
    warnings = [warning for one in read for warning in one.warnings]
    return Requirements(
        distributions=tuple(name for one in read for name in one.distributions),
        open=any(one.open for one in read),
        warnings=(*warnings, *_not_installed(files.members, names, file)),
    )


def _in_utf8(files: Files, name: str, shown: str) -> bytes:
    """Return the content of a requirements file. Pack UTF-16 as UTF-8: older versions of pip misread it."""
    content = files.content(KEY, name)
    if content.startswith(_NOT_ASCII):
        content = decode_requirements(content, shown).encode("utf-8-sig")
        files.replace(name, content)
    return content


def _included(files: Files, requirements: Requirements, name: str, shown: str) -> Iterator[str]:
    """Yield the names of the requirements files that a file includes; check the constraints."""
    for line, option, file in requirements.included:
        if "://" in file or "$" in file:
            continue
        included = posixpath.normpath(posixpath.join(posixpath.dirname(name), file))
        if included not in files.members:
            hint = f"Add {file} to model.extra-files."
            raise ArchiveError(f"{file} is not in the archive", where=f"{shown}:{line}", hint=hint)
        if option == "-r":
            yield included
        else:
            where = files.shown(included)
            refuse_credentials(decode_requirements(_in_utf8(files, included, where), where), where)


def _check_places(members: Collection[str], requirements: Requirements, shown: str) -> None:
    """Check that the archive has each wheel and folder that a line names."""
    for line, place in requirements.places:
        inside = f"{place}/" if place != "." else ""
        if place in members or any(inside + project in members for project in _PROJECT):
            continue
        folder, name = posixpath.split(place)
        if name in members:
            hint = f"Write `./{name}`: the file is at the top of the archive."
        elif folder:
            hint = f'Write "{folder}/" into model.extra-files (the / keeps the folder).'
        else:
            hint = f"Add {place} to model.extra-files."
        if place.startswith(".."):
            hint = "Add it to model.extra-files, and write its path in the archive."
        if place == ".":
            hint = "Make a wheel with `pip wheel .`, add it to model.extra-files, and write `./FILE.whl`."
        what = f"{place} is not in the archive, and the serving container does not have it"
        raise ArchiveError(what, where=f"{shown}:{line}", hint=hint)


def _not_installed(members: Collection[str], names: Collection[str], file: str | None) -> Iterator[str]:
    """Yield a warning for each requirements file of the archive that is not installed."""
    for name in members:
        if not _FOR_PIP.fullmatch(name) or name in names or _NOT_FOR_SERVING.search(name):
            continue
        remedy = f"add the line `-r {name}` to {file}" if file else "name it in model.requirements-file"
        yield f"{name} is in the archive, but TorchServe does not install it; {remedy}"
