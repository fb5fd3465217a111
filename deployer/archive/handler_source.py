"""What can be told from a handler's source about how it will be taken.

The module is asked for the function that is named, else for `handle`, else for the one class of its own
that has a method `handle`. Only what is certain to fail there is an error here; where the module makes its
names at run time, nothing is said.
"""

from __future__ import annotations

import ast
import difflib
from collections import Counter
from collections.abc import Iterable, Iterator

from deployer.errors import ArchiveError

HANDLER_KEY = "kdeploy.toml: model.handler"

_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_DYNAMIC_NAMES = {"globals", "locals", "vars", "exec", "eval", "setattr", "__import__"}
_DYNAMIC_ATTRIBUTES = {"modules", "__dict__", "__module__", "handle", "initialize"}
_NO_CLASS = (
    ast.Constant, ast.JoinedStr, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.ListComp, ast.DictComp,
    ast.SetComp, ast.GeneratorExp, ast.Lambda, ast.Compare, ast.BinOp, ast.UnaryOp, ast.Name, ast.Attribute,
)  # fmt: skip
_PLAIN_BASES = {"object", "ABC"}


def check_entry_point(tree: ast.Module, path: str, function: str | None) -> None:
    """See that a handler's module has an entry point. `ArchiveError` if it certainly has none."""
    names = Counter(_bound(tree.body))
    if _is_dynamic(tree):
        return
    if function is not None:
        if function not in names:
            raise _no_function(function, names, path)
    elif "handle" not in names:
        _check_the_class(tree, names, path)


def _no_function(function: str, names: Iterable[str], path: str) -> ArchiveError:
    near = difflib.get_close_matches(function, names, n=1)
    return ArchiveError(
        f"{path} defines no {function} at its top level",
        where=HANDLER_KEY,
        hint=f"did you mean {near[0]}?" if near else "name a function that the file defines",
    )


def _check_the_class(tree: ast.Module, names: Counter[str], path: str) -> None:
    with_handle = _classes_with_handle(tree, names)
    if len(with_handle) > 1:
        raise ArchiveError(
            f"the handler has no function `handle` and several classes with one: {_listed(with_handle)}",
            where=path,
            hint="keep one in this file and move the others to a file in model.extra-files, "
            "or name a function: model.handler = 'file.py:function'",
        )
    statements = list(_statements(tree.body))
    classes = [statement for statement in statements if isinstance(statement, ast.ClassDef)]
    possible = any(_may_have(found, "handle") for found in classes) or any(map(_may_make_a_class, statements))
    if not possible:
        raise ArchiveError(
            "the handler defines neither a function `handle` nor a class with a method `handle`",
            where=path,
            hint="define `handle(data, context)`, or a class with `initialize(context)` and "
            "`handle(data, context)`; a class that is only imported does not count",
        )
    if with_handle and with_handle == classes and not _may_have(classes[0], "initialize"):
        raise ArchiveError(
            f"the handler's class {classes[0].name} has no method `initialize`",
            where=f"{path}:{classes[0].lineno}",
            hint="`initialize(context)` is called once, before the first batch; it may do nothing",
        )


def _classes_with_handle(tree: ast.Module, names: Counter[str]) -> list[ast.ClassDef]:
    """Return the classes that certainly have a method `handle`, of their own or from one of these."""
    found: dict[str, ast.ClassDef] = {}
    for candidate in _certain_classes(tree, names):
        if "handle" in _bound(candidate.body) or any(_name_of(base) in found for base in candidate.bases):
            found[candidate.name] = candidate
    return list(found.values())


def _may_have(found: ast.ClassDef, method: str) -> bool:
    plain = all(_name_of(base) in _PLAIN_BASES for base in found.bases)
    return method in _bound(found.body) or not plain or bool(found.decorator_list or found.keywords)


def check_model_file(tree: ast.Module, path: str, handler: str) -> None:
    """See that a model file has one class, as TorchServe's own handlers want it. `ArchiveError` if not."""
    classes = _certain_classes(tree, Counter(_bound(tree.body)))
    if len(classes) > 1 and not _is_dynamic(tree):
        raise ArchiveError(
            f"the model file defines several classes ({_listed(classes)}); TorchServe's {handler} takes one",
            where=path,
            hint="move the others to a file in model.extra-files and import them",
        )


def _certain_classes(tree: ast.Module, names: Counter[str]) -> list[ast.ClassDef]:
    """Return the classes that the module is sure to have once it is imported."""
    return [
        statement
        for statement in tree.body
        if isinstance(statement, ast.ClassDef)
        and names[statement.name] == 1
        and not statement.decorator_list
        and not statement.keywords
    ]


def _listed(classes: Iterable[ast.ClassDef]) -> str:
    return ", ".join(found.name for found in classes)


def _statements(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield the statements of a scope, those within `if`, `try` and other blocks too."""
    for statement in body:
        yield statement
        if not isinstance(statement, _SCOPES):
            for block in _BLOCKS:
                yield from _statements(getattr(statement, block, ()))


def _bound(body: Iterable[ast.AST]) -> Iterator[str]:
    """Yield each name that a scope binds or deletes, as often as it does."""
    for statement in _statements(body):
        if isinstance(statement, _SCOPES):
            yield statement.name
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                yield alias.asname or alias.name.partition(".")[0]
        else:
            yield from _assigned(statement)


def _assigned(statement: ast.AST) -> Iterator[str]:
    if isinstance(statement, ast.ExceptHandler) and statement.name:
        yield statement.name
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.expr | ast.withitem):
            for node in ast.walk(child):
                if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                    yield node.id


def _is_dynamic(tree: ast.Module) -> bool:
    """Whether the module may have other names than its text shows."""
    return any(_makes_names(node) for node in ast.walk(tree)) or "__getattr__" in _bound(tree.body)


def _makes_names(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return any(alias.name == "*" for alias in node.names)
    if isinstance(node, ast.Name):
        return node.id in _DYNAMIC_NAMES
    if isinstance(node, ast.Attribute):
        stored = isinstance(node.ctx, ast.Store)
        return node.attr in _DYNAMIC_ATTRIBUTES and (stored or node.attr in ("modules", "__dict__"))
    return isinstance(node, ast.Global)


def _may_make_a_class(statement: ast.AST) -> bool:
    """Whether an assignment may bind a class that is made by a call: `namedtuple(...)`, `type(...)`."""
    value = getattr(statement, "value", None)
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or value is None or isinstance(value, _NO_CLASS):
        return False
    return not (isinstance(value, ast.Call) and _name_of(value.func) == "getLogger")


def _name_of(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None
