"""What the Python files of an archive tell before anybody runs them: errors that are certain, and doubts."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath

from deployer.archive.handler_source import check_entry_point, check_model_file
from deployer.archive.imports import (
    IMAGE_MODULES,
    changes_path,
    in_standard_library,
    missing_imports,
    modules_of,
)
from deployer.archive.requirements import Requirements, provides
from deployer.archive.syntax import Source, minor_version, parse
from deployer.config import Model
from deployer.errors import ArchiveError

_NOT_TO_HIDE = {"torch", "ts"}


def check_sources(
    sources: Iterable[Source],
    names: Iterable[str],
    model: Model,
    entry: tuple[str | None, str | None],
    requirements: Requirements,
) -> tuple[str, ...]:
    """Check an archive's Python files against the serving image and return what is doubtful, as sentences.

    `names` are those of all members; `entry` is the handler's file (None for TorchServe's own) and its
    function. `ArchiveError` where the handler or the model file cannot work.
    """
    handler, function = entry
    model_file = PurePosixPath(model.model_file).name if model.model_file else None
    parsed: list[tuple[Source, ast.Module]] = []
    warnings: list[str] = []
    for source in sources:
        try:
            tree = parse(source, model.python)
        except ArchiveError as error:
            if source.name in (handler, model_file):
                raise
            warnings.append(str(error))
            continue
        if tree is None:
            warnings.append(_unchecked(source, model.python))
            continue
        parsed.append((source, tree))
        if source.name == handler:
            check_entry_point(tree, source.path, function)
        elif source.name == model_file and handler is None:
            check_model_file(tree, source.path, model.handler)
    names = list(names)
    warnings += _hidden(names, minor_version(model.python))
    warnings += _doubtful_imports(parsed, _knower(parsed, names, model, requirements))
    return tuple(warnings)


def _unchecked(source: Source, python: str) -> str:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"{source.path}: does not parse on Python {here}, which runs kdeploy; {python} may know better"


def _hidden(names: Iterable[str], minor: int) -> Iterator[str]:
    for module in sorted(modules_of(names)):
        if module in _NOT_TO_HIDE or in_standard_library(module, minor):
            yield f"{module}: the archive's module hides the one of that name in the serving image; rename it"


def _knower(
    parsed: Iterable[tuple[Source, ast.Module]],
    names: Iterable[str],
    model: Model,
    requirements: Requirements,
) -> Callable[[str], bool]:
    """Return the function that says whether a module will be there in the serving container."""
    minor = minor_version(model.python)
    anywhere = any(changes_path(source) for source, _ in parsed)
    held = modules_of(names, anywhere=anywhere) | IMAGE_MODULES
    held.update(module.partition(".")[0] for module in model.image_modules)

    def known(module: str) -> bool:
        return (
            requirements.open
            or module in held
            or in_standard_library(module, minor)
            or any(provides(distribution, module) for distribution in requirements.distributions)
        )

    return known


def _doubtful_imports(
    parsed: Iterable[tuple[Source, ast.Module]], known: Callable[[str], bool]
) -> Iterator[str]:
    for module, where in missing_imports(parsed, known):
        if module.startswith("."):
            name = module.lstrip(".")
            yield f"{where}: imports {module}, but the archive's top is no package; write `import {name}`"
            continue
        yield (
            f"{where}: imports {module}, which is neither in the archive nor in its requirements, and the "
            "serving image is not known to have it; add it to model.requirements-file or model.extra-files, "
            "or to model.image-modules if the image has it"
        )
