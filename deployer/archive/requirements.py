"""Checks a requirements file for lines with which pip fails in the serving container, and for credentials.

pip runs in the folder of the unpacked archive, so a relative path is a path in the archive.
"""

from __future__ import annotations

import codecs
import posixpath
import re
from collections.abc import Iterator

from msgspec import Struct

from deployer.archive.pins import impossible_version, impossible_wheel
from deployer.errors import ArchiveError
from deployer.leaks import has_login

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_REQUIREMENT = re.compile(
    rf"(?P<name>{_NAME})\s*(?:\[[^\]]*\])?\s*(?:(?P<version>(?:[<>!~]=?|===?|\().*)|@(?P<url>.*)|(?:;|--|$))"
)
_INCLUDED = re.compile(r"(?P<option>-r|-c|--requirement|--constraint)[\s=]*(?P<file>.+)")
_EDITABLE = re.compile(r"(?:-e|--editable)[\s=]*")
_INDEX = re.compile(r"-i\b|-f\b|--index-url\b|--extra-index-url\b|--find-links\b")
_CONDA = re.compile(rf"(?P<name>{_NAME})=(?P<version>[^=\s]+)=\S+")
_OPTIONS = re.compile(r"\s--[a-z].*$")
_COMMENT = re.compile(r"(^|\s+)#.*$")
_PACKAGE_FILES = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2")
_CODING = re.compile(rb"coding[:=]\s*([-\w.]+)")  # PEP 263, in the first two lines

_FILE_URL = re.compile(r"(?:[a-z]+\+)?file:", re.IGNORECASE)
_ELSEWHERE = re.compile(r"/|~|\\|\.{1,2}\\|[A-Za-z]:[\\/]")  # absolute, of a home, of Windows
_NOT_LINUX = re.compile("win32|windows|darwin", re.IGNORECASE)
_THIS_MACHINE = re.compile(r"://(?:[^/@]*@)?(?:localhost|127\.[0-9.]+|\[::1\])(?=[:/]|$)")

# In the order in which the longer mark comes first.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class Requirements(Struct, frozen=True):
    """The content of a requirements file.

    `distributions` have normalized names. `included` are the files that it names, with the line and `-r` or
    `-c`; `places` are the wheels and folders in the archive, with the line. `open` is true if it can install
    more than `distributions`: it names URLs, folders, or requirements files outside of the archive.
    `has_index`: whether it names an index or a page of packages.
    """

    distributions: tuple[str, ...] = ()
    included: tuple[tuple[int, str, str], ...] = ()
    places: tuple[tuple[int, str], ...] = ()
    open: bool = False
    has_index: bool = False
    warnings: tuple[str, ...] = ()


class _Reader:
    """Reads the lines of a requirements file, for Python 3.`minor`."""

    def __init__(self, path: str, minor: int, *, has_index: bool) -> None:
        self.distributions: list[str] = []
        self.included: list[tuple[int, str, str]] = []
        self.places: list[tuple[int, str]] = []
        self.warnings: list[str] = []
        self.is_open = False
        self._path, self._minor, self._has_index = path, minor, has_index
        self._number = 0

    def read(self, number: int, line: str) -> None:
        """Read one logical line."""
        self._number = number
        if match := _INCLUDED.fullmatch(line):
            file = match["file"].strip()
            if _FILE_URL.match(file) or _ELSEWHERE.match(file):
                raise self._of_this_machine(file, "Write a path relative to the requirements file.")
            option = "-r" if match["option"] in ("-r", "--requirement") else "-c"
            self.included.append((number, option, file))
            self.is_open = self.is_open or (option == "-r" and ("://" in file or "$" in file))
        elif editable := _EDITABLE.match(line):
            self._read_url(line[editable.end() :].strip(), None)
        elif line.startswith("-"):
            self._read_option(line)
        else:
            self._read_requirement(_OPTIONS.sub("", line))

    def _read_option(self, line: str) -> None:
        place = _INDEX.sub("", line, count=1).lstrip(" =")
        if _THIS_MACHINE.search(line):
            self._warn(f"{place} is an address of this machine, which a pod cannot reach")
        elif place != line and (_FILE_URL.match(place) or _ELSEWHERE.match(place)):
            hint = "Add the wheels to model.extra-files, and write a line such as `./FILE.whl` for each."
            raise self._of_this_machine(place, hint)

    def _read_requirement(self, line: str) -> None:
        named = _REQUIREMENT.match(line)
        if named and not named["name"].endswith(_PACKAGE_FILES):
            name = re.sub(r"[-_.]+", "-", named["name"]).lower()
            self.distributions.append(name)
            if named["url"] is not None:
                self._read_url(named["url"].strip(), named["name"])
            else:
                self._check_version(name, named["version"] or "")
        elif "/" in line or "\\" in line or line in (".", "..") or line.endswith(_PACKAGE_FILES):
            self._read_url(line, None)
        elif conda := _CONDA.fullmatch(line):
            raise self._error(
                f"invalid requirement {line!r}", f"Write `{conda['name']}=={conda['version']}`."
            )
        else:
            hint = "Write one requirement per line, such as `scikit-learn==1.5.2`."
            raise self._error(f"invalid requirement {line!r}", hint)

    def _read_url(self, url: str, name: str | None) -> None:
        """Read a URL or path. A named one has a distribution's name before it."""
        url, _, marker = url.partition(" ;")
        url = re.sub(r"\[[^\]/]*\]$", "", url.strip())
        self.is_open = self.is_open or name is None
        elsewhere = _FILE_URL.match(url) or _ELSEWHERE.match(url)
        if "${" in url:
            return  # a variable of the container
        if marker:  # a condition that need not be true in the container
            if elsewhere and not _NOT_LINUX.search(marker):
                self._warn(f"{url} is a place on this machine, which the serving container does not have")
            return
        if fault := impossible_wheel(url, self._minor):
            raise self._error(f"{posixpath.basename(url)} {fault}", "Name a wheel for the serving container.")
        if elsewhere:
            raise self._of_this_machine(url, _instead(url, name))
        if url.startswith(("git+ssh:", "ssh:", "hg+ssh:")):
            self._warn(f"{url} needs git and an SSH key in the container; add its wheel to model.extra-files")
        elif "://" not in url:
            if name:
                hint = f"Write `{name} @ https://…`, or `./FILE.whl` for a file of the archive."
                raise self._error(f"{url} is not a URL", hint)
            self.places.append((self._number, posixpath.normpath(url)))

    def _check_version(self, name: str, version: str) -> None:
        pinned, _, marker = version.partition(";")
        if marker:
            return  # it need not apply to the container
        if name == "pkg-resources":
            hint = "Remove the line: Debian's pip freeze adds it, and PyPI has no such package."
            raise self._error("pkg-resources is a part of setuptools, not a package", hint)
        local = re.search(r"==+\s*([^\s,;+]+)\+(\S+)", pinned)
        if local and not self._has_index:
            raise self._error(
                f"{name}=={local[1]}+{local[2]} is a build of this machine: PyPI has no versions with a +",
                f"Write `{name}=={local[1]}`, remove the line if the serving image has {name}, or name the "
                "index that has it in a line `--extra-index-url URL`.",
            )
        if newest := impossible_version(name, pinned, self._minor):
            hint = f"Require {name} {newest} or older, or correct model.python."
            raise self._error(f"{name} {pinned.strip()} needs a newer Python than 3.{self._minor}", hint)

    def _warn(self, what: str) -> None:
        self.warnings.append(f"{self._path}:{self._number}: {what}")

    def _of_this_machine(self, place: str, hint: str) -> ArchiveError:
        what = f"{place} is a place on this machine, which the serving container does not have"
        return self._error(what, hint)

    def _error(self, what: str, hint: str) -> ArchiveError:
        return ArchiveError(what, where=f"{self._path}:{self._number}", hint=hint)


def _instead(place: str, name: str | None) -> str:
    """Return the hint for a requirement that is a path outside of the archive."""
    file = re.split(r"[\\/]", place.rstrip("\\/"))[-1]
    if not name and file.endswith(_PACKAGE_FILES):
        return f"Add the file to model.extra-files, and write `./{file}`; or write `NAME==VERSION`."
    if name:
        return (
            f"Write `{name}==VERSION`, as `pip list --format=freeze` does, or add its wheel to "
            "model.extra-files and write `./FILE.whl`."
        )
    return (
        "Build a wheel of it with `pip wheel`, add that to model.extra-files, and write `./FILE.whl`; or "
        "write `NAME==VERSION`."
    )


def decode_requirements(content: bytes, path: str) -> str:
    """Return the text of a requirements file, in the encoding that pip finds. `ArchiveError` if it cannot."""
    named = [_CODING.search(line) for line in content.split(b"\n")[:2] if line.startswith(b"#")]
    encoding = next((found[1].decode() for found in named if found), "utf-8")
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), encoding)
    try:
        text = content.decode(encoding)
    except (UnicodeError, LookupError) as error:
        what = f"the requirements file is not {encoding.upper().removesuffix('-SIG')}"
        raise ArchiveError(what, where=path, hint="Save it as UTF-8.") from error
    if "\0" in text:
        what = "the requirements file contains NUL bytes, as UTF-16 without a byte order mark does"
        raise ArchiveError(what, where=path, hint="Save it as UTF-8.")
    return text


def read_requirements(
    content: bytes, path: str, *, minor: int = 9, by: Requirements | None = None
) -> Requirements:
    """Read a requirements file. `ArchiveError`, with file and line, if pip on Python 3.`minor` refuses it.

    A file that another one includes, `by`, can be empty, and pip uses the indexes of both for it.
    """
    text = decode_requirements(content, path)
    refuse_credentials(text, path)
    lines = list(_logical_lines(text))
    if not lines and not by:
        hint = "List the packages that the handler needs, or remove model.requirements-file."
        raise ArchiveError("the requirements file is empty", where=path, hint=hint)
    has_index = bool(by and by.has_index) or any(_INDEX.match(line) for _, line in lines)
    reader = _Reader(path, minor, has_index=has_index)
    for number, line in lines:
        reader.read(number, line)
    return Requirements(
        distributions=tuple(reader.distributions),
        included=tuple(reader.included),
        places=tuple(reader.places),
        open=reader.is_open,
        has_index=has_index,
        warnings=tuple(reader.warnings),
    )


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
