"""Checks the Python files of an archive without running them.

They parse on the serving image's Python, as far as `ast.parse(feature_version=...)` knows it; the handler has
an entry point; the modules that they import are in the archive, its requirements or the image. Only what
certainly fails is an error.
"""

from __future__ import annotations

import ast
import difflib
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from deployer.archive.imports import doubtful_imports
from deployer.archive.members import Source
from deployer.archive.newer_python import imported_modules, newer_python
from deployer.archive.requirements import Requirements
from deployer.config import Model
from deployer.errors import ArchiveError

HANDLER_KEY = "kdeploy.toml: model.handler"

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_PLAIN_BASES = {"object", "ABC"}
_DYNAMIC_NAMES = {"globals", "locals", "vars", "exec", "eval", "setattr"}
_DYNAMIC_ATTRIBUTES = {"modules", "__dict__"}


def check_sources(
    sources: Iterable[Source],
    names: Iterable[str],
    model: Model,
    entry: tuple[str | None, str | None],
    requirements: Requirements,
    root: Path,
) -> tuple[str, ...]:
    """Check an archive's Python files against the serving image, and return warnings.

    `names` are those of all members; `entry` is the handler's file (None for TorchServe's own) and its
    function; `root` is the folder of kdeploy.toml. `ArchiveError` if the handler, the model file or a file
    that they import cannot work.
    """
    handler, function = entry
    model_file = PurePosixPath(model.model_file).name if model.model_file else None
    newer = _minor(model.python) > sys.version_info.minor  # the image's Python knows more than this one
    doubts: list[str] = []
    parsed: list[tuple[Source, ast.Module]] = []
    invalid: dict[str, ArchiveError] = {}
    for source in sources:
        try:
            tree = parse(source, model.python)
        except ArchiveError as fault:
            invalid[source.name] = fault
            continue
        parsed.append((source, tree))
    trees = {source.name: tree for source, tree in parsed}
    required = _required([name for name in (handler, model_file) if name], trees, invalid)
    for name, error in invalid.items():
        if name in required and not newer:
            raise error
        doubts.append(str(error))
    for source, tree in parsed:
        if source.name == handler:
            check_entry_point(tree, source.path, function)
        doubts += _check_python(tree, source, _minor(model.python), required=source.name in required)
    return (*doubts, *doubtful_imports(parsed, names, model, requirements, root))


def _required(names: list[str], trees: Mapping[str, ast.Module], invalid: Collection[str]) -> Collection[str]:
    """Return the files that are certainly imported: those with these names, and what they import."""
    for name in names:  # grows
        for module in imported_modules(trees[name], name) if name in trees else ():
            path = module.replace(".", "/")
            files = (file for file in (f"{path}.py", f"{path}/__init__.py") if file not in names)
            names += [file for file in files if file in trees or file in invalid]
    return names


def _check_python(tree: ast.Module, source: Source, minor: int, *, required: bool) -> Iterator[str]:
    """Yield warnings about code that fails on Python 3.`minor`. `ArchiveError` if a required file fails."""
    for fault in newer_python(tree, minor):
        where = f"{source.path}:{fault.line}"
        if fault.certain and required:
            what = f"{fault.what}, and the serving image has Python 3.{minor}"
            raise ArchiveError(what, where=where, hint=fault.hint)
        yield f"{where}: {fault.what}, and the serving image has Python 3.{minor}. {fault.hint}"


def _minor(python: str) -> int:
    return int(python.partition(".")[2])


def parse(source: Source, python: str) -> ast.Module:
    """Return the syntax tree. `ArchiveError`, with file and line, if `python` ("3.9") refuses the file."""
    minor = min(_minor(python), sys.version_info.minor)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source.content, source.path, feature_version=(3, minor))
            compile(tree, source.path, "exec", dont_inherit=True)  # finds a `return` outside of a function
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ArchiveError(
            f"cannot parse on Python 3.{minor}: {getattr(error, 'msg', error) or 'nested too deeply'}",
            where=f"{source.path}:{getattr(error, 'lineno', 1) or 1}",
            hint=f"The serving image has Python {python}. Change the file, or correct model.python.",
        ) from error
    return tree


def check_entry_point(tree: ast.Module, path: str, function: str | None) -> None:
    """Check that a module can have the function, else `handle`, else a class with a method `handle`.

    `ArchiveError` if it certainly has none; never if the module creates names at run time.
    """
    names = set(_bound(tree.body))
    if (function or "handle") in names or any(map(_is_dynamic, ast.walk(tree))):
        return
    if function:
        near = difflib.get_close_matches(function, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Name a function that the file defines."
        raise ArchiveError(f"function {function} not found in {path}", where=HANDLER_KEY, hint=hint)
    if not any(isinstance(node, ast.ClassDef) and _may_handle(node) for node in ast.walk(tree)):
        raise ArchiveError(
            "the handler defines neither a function `handle` nor a class with a method `handle`",
            where=path,
            hint="Define `handle(data, context)`, or a class with `initialize(context)` and "
            "`handle(data, context)`. A class that is only imported does not count.",
        )


def _bound(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield each name that a scope binds, also within `if`, `try` and other blocks."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, _SCOPES):
            yield getattr(node, "name", "")
            continue
        pending += ast.iter_child_nodes(node)


def _is_dynamic(node: ast.AST) -> bool:
    """Whether a node can give the module names, or a class a method, that the text does not show."""
    if isinstance(node, ast.Name):
        return node.id in _DYNAMIC_NAMES
    if isinstance(node, ast.Attribute):
        return node.attr in _DYNAMIC_ATTRIBUTES or (node.attr == "handle" and isinstance(node.ctx, ast.Store))
    if isinstance(node, ast.Call):
        return getattr(node.func, "id", None) == "type" and len(node.args) > 1
    return isinstance(node, ast.Global) or getattr(node, "name", None) in ("*", "__getattr__")


def _may_handle(found: ast.ClassDef) -> bool:
    plain = all(getattr(base, "id", getattr(base, "attr", None)) in _PLAIN_BASES for base in found.bases)
    return "handle" in _bound(found.body) or not plain or bool(found.decorator_list or found.keywords)
