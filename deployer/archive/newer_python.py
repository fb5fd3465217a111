"""Finds code that parses on an older Python but fails there: names, arguments and operators that came later.

What a file does when it is imported fails certainly; the body of a function fails only when it is called.
Code that tests the version, or that catches exceptions, is left out. Pure.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

_TYPES = """
    int float complex bool str bytes bytearray list tuple dict set frozenset type object range slice
    BaseException Exception
"""
# Standard modules and their names, by the minor of Python 3 that has them first.
_NAMES = {
    10: """
        contextlib.aclosing dataclasses.KW_ONLY inspect.get_annotations itertools.pairwise
        statistics.correlation statistics.covariance statistics.linear_regression sys.orig_argv
        sys.stdlib_module_names types.EllipsisType types.NoneType types.NotImplementedType types.UnionType
        typing.Concatenate typing.ParamSpec typing.TypeAlias typing.TypeGuard typing.is_typeddict
    """,
    11: """
        tomllib wsgiref.types asyncio.Runner asyncio.TaskGroup asyncio.timeout contextlib.chdir datetime.UTC
        enum.StrEnum
        enum.verify hashlib.file_digest math.cbrt math.exp2 operator.call typing.LiteralString typing.Never
        typing.NotRequired typing.Required typing.Self typing.TypeVarTuple typing.Unpack typing.assert_never
        typing.assert_type typing.dataclass_transform typing.reveal_type
    """,
    12: "itertools.batched math.sumprod typing.TypeAliasType typing.override",
    13: "copy.replace typing.NoDefault typing.ReadOnly typing.TypeIs warnings.deprecated",
}
_SINCE = {name: minor for minor, names in _NAMES.items() for name in names.split()}
# Keyword arguments, by function.
_ARGUMENTS = {
    "zip": {"strict": 10},
    "dataclasses.dataclass": {"kw_only": 10, "match_args": 10, "slots": 10, "weakref_slot": 11},
    "dataclasses.field": {"kw_only": 10},
}
_GUARDS = ("version_info", "hexversion", "hasattr")
_FUTURE = "Write `Optional` or `Union`, or begin the file with `from __future__ import annotations`."
_TUPLE = "Write `Optional` or `Union`, or a tuple of classes for `isinstance`."


class Fault(NamedTuple):
    """Code that fails on the older Python: certainly when the file is imported, or when the code runs."""

    line: int
    kind: str  # of each kind, one fault per file is enough
    what: str
    hint: str
    certain: bool


class _Place(NamedTuple):
    """A node, and whether it certainly runs on import, is an annotation, and is in a function."""

    node: ast.AST
    certain: bool = True
    annotation: bool = False
    local: bool = False


def newer_python(tree: ast.Module, minor: int) -> list[Fault]:
    """Return the faults of a file on Python 3.`minor`, sorted by line: the first of each kind."""
    finder = _Finder(tree, minor)
    found = [fault for place in _walk(tree) for fault in finder.faults(place)]
    first: dict[str, Fault] = {}
    for fault in sorted(found, key=lambda fault: (not fault.certain, fault.line)):
        first.setdefault(fault.kind, fault)
    return sorted(first.values())


def imported_modules(tree: ast.Module, name: str) -> Iterator[str]:
    """Yield the dotted names that a file certainly imports, and their packages. `name` is its path."""
    for node, certain, _, _ in _walk(tree):
        found: list[str] = []
        if certain and isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif certain and isinstance(node, ast.ImportFrom):
            package = name.split("/")[: -node.level] if node.level else []
            origin = ".".join([*package, *([node.module] if node.module else [])])
            found = [f"{origin}.{alias.name}".lstrip(".") for alias in node.names]
        for module in found:
            parts = module.split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


class _Finder:
    """Knows what the names of a module mean: those that it imports, and the built-in types."""

    def __init__(self, tree: ast.Module, minor: int) -> None:
        self._minor = minor
        self._names: dict[str, str] = {}
        bound: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self._names |= {alias.asname or alias.name: alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                self._names |= names
                bound |= names.keys()
            elif isinstance(node, ast.ClassDef | ast.FunctionDef):
                bound.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                bound.add(node.id)
        self._types = set(_TYPES.split()) - bound

    def faults(self, place: _Place) -> Iterator[Fault]:
        """Yield the faults of one node."""
        node = place.node
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from self._name(alias.name, node.lineno, place.certain)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from self._name(node.module or "", node.lineno, place.certain)
            for alias in node.names:
                yield from self._name(f"{node.module}.{alias.name}", node.lineno, place.certain)
        elif isinstance(node, ast.Attribute):
            yield from self._name(self._full_name(node), node.lineno, place.certain)
        elif isinstance(node, ast.Call):
            yield from self._arguments(node, place.certain)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and self._minor < 10:
            yield from self._union(node, place)

    def _name(self, name: str, line: int, certain: bool) -> Iterator[Fault]:
        since = _SINCE.get(name, 0)
        if since > self._minor:
            hint = f"Write the code without it; Python 3.{self._minor} does not have it."
            yield Fault(line, name, f"`{name}` needs Python 3.{since}", hint, certain)

    def _arguments(self, call: ast.Call, certain: bool) -> Iterator[Fault]:
        name = self._full_name(call.func)
        for keyword in call.keywords:
            since = _ARGUMENTS.get(name, {}).get(keyword.arg or "", 0)
            if since > self._minor:
                what = f"`{keyword.arg}` of {name.rpartition('.')[2]} needs Python 3.{since}"
                yield Fault(call.lineno, what, what, f"Leave out `{keyword.arg}`.", certain)

    def _union(self, node: ast.BinOp, place: _Place) -> Iterator[Fault]:
        parts = list(_alternatives(node))
        of_types = any(self._is_type(part) for part in parts)
        with_none = any(isinstance(part, ast.Constant) and part.value is None for part in parts)
        if of_types or place.annotation:
            kind, hint = ("an annotation", _FUTURE) if place.annotation else ("an expression", _TUPLE)
            what = f"`{ast.unparse(node)}` in {kind} needs Python 3.10"
            yield Fault(node.lineno, kind, what, hint, place.certain and (of_types or with_none))

    def _is_type(self, node: ast.expr) -> bool:
        """Whether an expression is a built-in type, such as `int` or `list[str]`."""
        inner = node.value if isinstance(node, ast.Subscript) else node
        return isinstance(inner, ast.Name) and inner.id in self._types

    def _full_name(self, node: ast.expr) -> str:
        """Return the name of an imported function or module attribute, else the name as it is written."""
        if isinstance(node, ast.Attribute):
            inner = self._full_name(node.value)
            return f"{inner}.{node.attr}" if inner else ""
        if isinstance(node, ast.Name):
            return self._names.get(node.id, node.id if node.id == "zip" else "")
        return ""


def _alternatives(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _alternatives(node.left)
        yield from _alternatives(node.right)
    else:
        yield node


def _walk(tree: ast.Module) -> Iterator[_Place]:
    """Yield the nodes that can run; of a chain of `|`, only the outermost."""
    lazy = any(
        isinstance(node, ast.ImportFrom)
        and node.module == "__future__"
        and any(alias.name == "annotations" for alias in node.names)
        for node in tree.body
    )
    pending = [_Place(tree)]
    while pending:
        place = pending.pop()
        yield place
        pending += [inner for inner in _inside(place) if not (lazy and inner.annotation)]


def _inside(place: _Place) -> Iterator[_Place]:
    """Yield the parts of a node that run when it runs, or later."""
    node = place.node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        yield from _of_function(place, node)
    elif isinstance(node, ast.ClassDef):
        yield from (place._replace(node=one, local=False) for one in ast.iter_child_nodes(node))
    elif isinstance(node, ast.AnnAssign):
        if not place.local:
            yield place._replace(node=node.annotation, annotation=True)
        yield from (place._replace(node=one) for one in (node.target, node.value) if one)
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield from _of_condition(place, node)
    elif isinstance(node, ast.With) and "suppress" in ast.dump(node.items[0]):
        return
    elif isinstance(node, ast.Try) and node.handlers:
        yield from (place._replace(node=one) for one in (*node.orelse, *node.finalbody))
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from (place._replace(node=one) for one in _alternatives(node))
    else:
        sure = place.certain and not isinstance(
            node,
            ast.For
            | ast.AsyncFor
            | ast.BoolOp
            | ast.ListComp
            | ast.SetComp
            | ast.DictComp
            | ast.GeneratorExp,
        )
        yield from (place._replace(node=one, certain=sure) for one in ast.iter_child_nodes(node))


def _of_function(
    place: _Place, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
) -> Iterator[_Place]:
    arguments = node.args
    yield from (place._replace(node=one) for one in (*arguments.defaults, *arguments.kw_defaults) if one)
    if isinstance(node, ast.Lambda):
        yield place._replace(node=node.body, certain=False, local=True)
        return
    yield from (place._replace(node=one) for one in node.decorator_list)
    every = [
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        arguments.vararg,
        arguments.kwarg,
    ]
    annotations = [one.annotation for one in every if one] + [node.returns]
    yield from (place._replace(node=one, annotation=True) for one in annotations if one)
    yield from (place._replace(node=one, certain=False, local=True) for one in node.body)


def _of_condition(place: _Place, node: ast.If | ast.IfExp | ast.While) -> Iterator[_Place]:
    yield place._replace(node=node.test)
    names = {getattr(one, "id", getattr(one, "attr", None)) for one in ast.walk(node.test)}
    if names.intersection(_GUARDS):
        return
    body = node.body if isinstance(node.body, list) else [node.body]
    otherwise = node.orelse if isinstance(node.orelse, list) else [node.orelse]
    never = names & {"TYPE_CHECKING", "__name__"}
    yield from (place._replace(node=one, certain=False) for one in (*(() if never else body), *otherwise))
