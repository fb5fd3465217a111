"""Code that parses on the serving image's Python, and fails there."""

from __future__ import annotations

import ast
import textwrap

import pytest

from deployer.archive.newer_python import Fault, imported_modules, newer_python
from deployer.errors import ArchiveError

FUTURE = "from __future__ import annotations\n"


def faults(text: str, minor: int = 9) -> list[Fault]:
    return newer_python(ast.parse(textwrap.dedent(text)), minor)


@pytest.mark.parametrize(
    "text",
    [
        "def f(x: float | None): ...",
        "def f(*x: int | str): ...",
        "def f(*, x=1, **y: 'A' | None): ...",
        "def f(x, /) -> list[dict] | None: ...",
        "async def f() -> Optional[int | str]: ...",
        "class A:\n score: float | None = None",
        "class A:\n def f(self, x: torch.Tensor | None): ...",
        "class A:\n class B:\n  x: dict[str, int | None]",
        "x: int | None = None",
        "with open('f') as f:\n x: A | None",
        "try:\n pass\nfinally:\n x: A | B | None = 1",
        "def f(x: Callable[[int | None], str]): ...",
    ],
)
def test_a_union_in_an_annotation_that_is_evaluated_on_import(text):
    (fault,) = faults(text)
    assert fault.certain
    assert fault.what.endswith("in an annotation needs Python 3.10")
    assert "from __future__ import annotations" in fault.hint
    assert faults(text, 10) == []
    assert faults(FUTURE + text) == []


@pytest.mark.parametrize(
    "text",
    [
        "Number = int | float",
        "ok = isinstance(x, int | str)",
        "def f(x=cast(int | None, 1)): ...",
        "class A(Base[int | None]): ...",
        "@register(list[int] | str)\ndef f(): ...",
        "T = TypeVar('T', bound=dict | None)",
        "f = lambda x=(str | None): x",
    ],
)
def test_a_union_in_an_expression(text):
    (fault,) = faults(FUTURE + textwrap.dedent(text))
    assert fault.certain
    assert "in an expression needs Python 3.10" in fault.what
    assert "`isinstance`" in fault.hint
    assert faults(text, 10) == []


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n x: int | None = None",
        "def f():\n self.x: int | None = None",
        "def f(x: 'int | None'): ...",
        "flags = re.A | re.B",
        "x = {} | {}",
        "list = mine\nx = list | 1",
        "from x import int\ny = int | 1",
        "x = a | None",
        "if TYPE_CHECKING:\n x: int | None",
        "if __name__ == '__main__':\n x: int | None",
        "if sys.version_info >= (3, 10):\n x = int | None",
        "x = (int | None) if sys.version_info >= (3, 10) else None",
        "try:\n X = int | str\nexcept TypeError:\n X = None",
        "with suppress(TypeError):\n X = int | str",
        "x = pairwise([])",
        "from .itertools import pairwise",
        "from more_itertools import pairwise",
        "from typing_extensions import Self",
        "from pydantic.dataclasses import dataclass\n@dataclass(slots=True)\nclass A: ...",
        "from attr import dataclass\n@dataclass(kw_only=True)\nclass A: ...",
        "zip(a, b, **c)",
        "self.math.cbrt(1)",
        "f().UTC",
    ],
)
def test_code_that_works(text):
    assert faults(text) == []


@pytest.mark.parametrize(
    ("text", "what", "minor"),
    [
        (
            "from dataclasses import dataclass\n@dataclass(slots=True)\nclass A: ...",
            "`slots` of dataclass",
            10,
        ),
        ("import dataclasses as d\n@d.dataclass(kw_only=True)\nclass A: ...", "`kw_only` of dataclass", 10),
        ("from dataclasses import field\nx = field(kw_only=True)", "`kw_only` of field", 10),
        ("from itertools import pairwise", "`itertools.pairwise`", 10),
        ("from typing import ParamSpec as P", "`typing.ParamSpec`", 10),
        ("from typing import Self, Any", "`typing.Self`", 11),
        ("from datetime import UTC, datetime", "`datetime.UTC`", 11),
        ("import datetime\nNOW = datetime.datetime.now(datetime.UTC)", "`datetime.UTC`", 11),
        ("from enum import StrEnum", "`enum.StrEnum`", 11),
        ("import tomllib", "`tomllib`", 11),
        ("from tomllib import loads", "`tomllib`", 11),
        ("from typing import override", "`typing.override`", 12),
        ("pairs = list(zip([], [], strict=True))", "`strict` of zip", 10),
    ],
)
def test_names_and_arguments_that_came_later(text, what, minor):
    for older in {9, minor - 1}:
        (fault,) = faults(text, older)
        assert fault.certain
        assert fault.what == f"{what} needs Python 3.{minor}"
    assert faults(text, minor) == []


@pytest.mark.parametrize(
    "text",
    [
        "def handle(data, context):\n return list(zip(data, data, strict=True))",
        "import math\ndef f(x):\n return math.cbrt(x)",
        "import itertools\nf = lambda x: itertools.pairwise(x)",
        "def f():\n from datetime import UTC",
        "def f():\n def g(x: int | None): ...",
        "def f():\n class A:\n  x: int | None",
        "def f(x):\n return isinstance(x, int | str)",
        "if ready:\n x: int | None = 1",
        "for x in y:\n z = int | str",
        "x = a and (int | str)",
        "def f(x: np.ndarray | torch.Tensor): ...",
    ],
)
def test_what_fails_only_when_it_runs(text):
    (fault,) = faults(text)
    assert not fault.certain


def test_one_fault_of_each_kind_in_the_order_of_lines():
    found = faults(
        """
        def f(x: A | B): ...
        def g(x: int | None): ...
        def h(x: str | None): ...
        from itertools import pairwise
        from math import cbrt
        """
    )
    assert [(fault.line, fault.certain) for fault in found] == [(3, True), (5, True), (6, True)]


def test_the_handler_is_refused_and_other_files_are_warned_about(plan, root):
    code = "def handle(data: list, context: dict | None = None):\n return list(zip(data, strict=True))\n"
    (root / "handler.py").write_text(code)
    with pytest.raises(ArchiveError, match=r"`dict \| None` in an annotation needs Python 3\.10") as caught:
        plan()
    assert caught.value.where == "handler.py:1"
    (root / "handler.py").write_text(FUTURE + code)
    (warning,) = plan().warnings
    assert warning == (
        "handler.py:3: `strict` of zip needs Python 3.10, and the serving image has Python 3.9. "
        "Leave out `strict`."
    )
    assert plan(python="3.10").warnings == ()
    (root / "net.py").write_text("class Net:\n size: int | None = None\n")
    with pytest.raises(ArchiveError) as caught:
        plan(model_file="net.py")
    assert caught.value.where == "net.py:2"
    (warning, _) = sorted(plan(extra_files=("net.py",)).warnings, key=lambda text: "net.py" not in text)
    assert warning.startswith("net.py:2: `int | None` in an annotation needs Python 3.10")


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        ("import a.b as c, d", {"a", "a.b", "d"}),
        ("from a.b import c", {"a", "a.b", "a.b.c"}),
        ("from .x import y", {"net", "net.sub", "net.sub.x", "net.sub.x.y"}),
        ("from .. import z", {"net", "net.z"}),
        ("try:\n import a\nexcept ImportError:\n import b", set()),
        ("def f():\n import a", set()),
        ("if TYPE_CHECKING:\n import a", set()),
    ],
)
def test_the_modules_that_a_file_certainly_imports(text, modules):
    assert set(imported_modules(ast.parse(text), "net/sub/file.py")) == modules


@pytest.mark.parametrize("broken", ["class A:\n x: int | None = 1\n", "match x:\n case 1: pass\n"])
def test_a_file_that_the_handler_imports_is_refused_like_the_handler(plan, root, broken):
    for file in ("net/__init__.py", "net/ops.py", "net/more.py", "tools.py"):
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text("")
    files = ("net/", "tools.py")
    handler = "import net.ops\ndef handle(data, context):\n import tools\n"
    (root / "handler.py").write_text(handler)
    (root / "tools.py").write_text(broken)
    (root / "net" / "more.py").write_text(broken)
    assert len(plan(extra_files=files).warnings) == 2
    (root / "net" / "ops.py").write_text("from . import more")
    with pytest.raises(ArchiveError) as caught:
        plan(extra_files=files)
    assert caught.value.where.startswith("net/more.py:")
    (root / "net" / "more.py").write_text("")
    (root / "net" / "__init__.py").write_text(broken)
    with pytest.raises(ArchiveError) as caught:
        plan(extra_files=files)
    assert caught.value.where.startswith("net/__init__.py:")
