from __future__ import annotations

import sys
import textwrap

import pytest

from deployer.archive.imports import image_modules
from deployer.archive.lint import check_entry_point, parse
from deployer.archive.members import Source
from deployer.errors import ArchiveError

HERE = sys.version_info.minor


def tree_of(text: str, python: str = "3.9"):
    return parse(Source("h.py", "h.py", textwrap.dedent(text).encode()), python)


def refused(text: str, python: str = "3.9") -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        tree_of(text, python)
    return caught.value


@pytest.mark.parametrize(
    ("text", "since"),
    [
        ("match x:\n case 1: pass", 10),
        ("try:\n pass\nexcept* ValueError:\n pass", 11),
        ("type X = int", 12),
        ("def f[T](a: T): pass", 12),
        ("class A[T]: pass", 12),
        ("class A[T = int]: pass", 13),
    ],
)
def test_syntax_that_a_python_lacks_is_refused(text, since):
    error = refused(f"\n{text}", f"3.{since - 1}")
    assert error.where > "h.py:1"
    assert f"cannot parse on Python 3.{min(since - 1, HERE)}: " in error.what
    if since <= HERE:
        tree_of(text, f"3.{since}")


@pytest.mark.parametrize(
    "text",
    [
        'with (open("a") as a, open("b") as b):\n pass',
        "x: int | str = 1",
        "a[(*b,)]",
        "a[1, 2]",
        "a[(i := 1)]",
        "x = {(i := 1), 2}",
        "x = {(i := j) for j in k}",
        "x[1] = {1}",
        "@a[0].b\ndef f(a, /): pass",
        "f'{x!r:>{width}}' f\"{d['a']}\" rf'\\d{x}'",
        "f'''{\nx}\n''' f'a\\n{x}'",
        "x = '\\d'",
        "\ufeffx = 1",
        "async def f():\n return [y async for y in z]",
        "",
    ],
)
def test_syntax_that_python_39_accepts(text):
    assert tree_of(text) is not None


def test_a_file_in_another_encoding():
    source = Source("h.py", "h.py", "# coding: latin-1\nx = f'{y} é'\na[(z := 'é')]\n".encode("latin-1"))
    assert parse(source, "3.9") is not None
    with pytest.raises(ArchiveError):
        parse(Source("h.py", "h.py", b"x = '\xe9'"), "3.9")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = (", 1),
        ("\n\nreturn 1", 3),
        ("print 'a'", 1),
        ("def f(a, a): pass", 1),
        ("x\0", 1),
        ("(" * 500, 1),
        ("x = " + "-" * 100_000 + "1", 1),
    ],
)
def test_syntax_that_no_python_accepts(text, line):
    assert refused(text).where == f"h.py:{line}"


CLASS = "class H:\n def initialize(self, c): pass\n def handle(self, d, c): pass\n"


@pytest.mark.parametrize(
    "text",
    [
        CLASS,
        "import torch\nlogger = logging.getLogger(__name__)\nX: int\nY: int = 2\n" + CLASS,
        "def handle(data, context): pass",
        "async def handle(data, context): pass",
        "handle = lambda data, context: data",
        "from mine import handle",
        "import x.handle as handle",
        "try:\n  from mine import handle\nexcept ImportError as e:\n  handle = None",
        "if x:\n  def handle(): pass",
        "for handle in y: pass",
        "with y as (a, handle): pass",
        "def handle(): pass\nclass A:\n def handle(self): pass\nclass B:\n def handle(self): pass",
        "from mine import *",
        "globals()['handle'] = 1",
        "import sys\nsys.modules[__name__] = 1",
        "def __getattr__(name): pass",
        "def f():\n  global handle\n  handle = 1",
        "class H(BaseHandler): pass",
        "class H(x.Base[int]): pass",
        "class H(metaclass=Meta): pass",
        "@register\nclass H: pass",
        "class Net(nn.Module):\n def forward(self, x): pass\n" + CLASS,
        "class Row:\n pass\n" + CLASS,
        CLASS + "class Row(H, metaclass=M): pass",
        "try:\n import a\nexcept ImportError:\n " + CLASS.replace("\n", "\n "),
        CLASS + "class B:\n def handle(self): pass\ndel B",
        CLASS + "class B:\n def handle(self): pass\nB = 1",
        "class H:\n pass\nH.handle = f",
        "class H:\n initialize = handle = f",
        "H = type('H', (Base,), {})",
        "def make():\n class H:\n  def handle(self): pass\n return H\nH = make()",
        CLASS + CLASS.replace("H", "B"),  # loading the model reports both
        "\nclass H:\n def handle(self): pass",
    ],
)
def test_handlers_that_can_work(text):
    check_entry_point(tree_of(text), "h.py", None)


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("", "neither a function `handle` nor a class", "h.py"),
        ("from mine import Handler", "neither a function", "h.py"),
        ("H = mine.Handler", "neither a function", "h.py"),
        ("def predict(): pass\nlogger = getLogger()\n", "neither a function", "h.py"),
        ("class H:\n def predict(self): pass", "neither a function", "h.py"),
        ("class H(object):\n pass", "neither a function", "h.py"),
        ("class H(abc.ABC):\n pass", "neither a function", "h.py"),
        ("H = make_handler()\nmodel.eval()", "neither a function", "h.py"),
    ],
)
def test_handlers_that_cannot_work(text, what, where):
    with pytest.raises(ArchiveError) as caught:
        check_entry_point(tree_of(text), "h.py", None)
    assert what in caught.value.what
    assert caught.value.where == where


def test_a_named_function():
    check_entry_point(tree_of("def predict(): pass"), "h.py", "predict")
    check_entry_point(tree_of("from x import *"), "h.py", "predict")
    with pytest.raises(ArchiveError) as caught:
        check_entry_point(tree_of("def predikt(): pass"), "h.py", "predict")
    assert (caught.value.where, caught.value.hint) == ("kdeploy.toml: model.handler", "Did you mean predikt?")
    with pytest.raises(ArchiveError, match=r"function predict not found in h\.py"):
        check_entry_point(tree_of("class A:\n def predict(self): pass"), "h.py", "predict")


def test_files_that_do_not_parse(plan, root):
    (root / "new.py").write_text("\nmatch x:\n  case 1: pass\n")
    for change in ({"handler": "new.py"}, {"model_file": "new.py"}):
        with pytest.raises(ArchiveError) as caught:
            plan(**change)
        assert caught.value.where.startswith("new.py:")
    assert "new.py:" in plan(extra_files=("new.py",)).warnings[0]
    plan(model_file="new.py", python=f"3.{HERE}")
    (root / "newer.py").write_text("x = = 1")
    (warning,) = plan(handler="handler.py", model_file="newer.py", python=f"3.{HERE + 1}").warnings
    assert warning.startswith(f"newer.py:1: cannot parse on Python 3.{HERE}: ")


def test_imports_that_the_image_may_lack(plan, root):
    (root / "handler.py").write_text(
        textwrap.dedent("""
        import os, torch.nn as nn, sklearn.svm
        from numpy import array
        import net, package.inner, binary
        from PIL import Image
        from . import sibling
        if True:
            import cv2
        class Handler:
            def initialize(self, context):
                import pandas, pandas
                from transformers import pipeline
            def handle(self, data, context):
                match = 1
        """)
    )
    (root / "net.py").write_text("import lightning\n")
    (root / "code" / "package").mkdir(parents=True)
    (root / "code" / "package" / "inner.py").write_text("from .other import x\nimport sklearn\n")
    (root / "code" / "binary.cpython-39-x86_64-linux-gnu.so").write_bytes(b"elf")
    extra = ("net.py", "code")

    def doubtful(**changes):
        return [warning.partition(", ")[0] for warning in plan(extra_files=extra, **changes).warnings]

    assert doubtful() == [
        "handler.py:2: imports sklearn",
        "handler.py:6: imports .sibling",
        "handler.py:8: imports cv2",
        "handler.py:11: imports pandas",
        "net.py:1: imports lightning",
    ]
    (root / "requirements.txt").write_text("Scikit_Learn==1.5\nopencv-python-headless\npytorch-lightning\n")
    assert doubtful(requirements_file="requirements.txt", image_modules=("pandas.core", "lightning")) == [
        "handler.py:6: imports .sibling"
    ]
    (root / "requirements.txt").write_text("git+https://host/repo\n")
    assert doubtful(requirements_file="requirements.txt") == ["handler.py:6: imports .sibling"]


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("try:\n import a1\nexcept ImportError:\n a1 = None", []),
        ("try:\n import a1\nexcept ImportError:\n import b1\nelse:\n import c1", ["c1"]),
        ("try:\n import a1\nexcept Exception:\n import b1\nfinally:\n import c1", ["c1"]),
        ("try:\n import a1\nexcept:\n pass", []),
        ("try:\n import a1\nfinally:\n import b1", ["a1", "b1"]),
        ("with contextlib.suppress(ImportError):\n import a1", []),
        ("with open(x):\n import a1", ["a1"]),
        ("with lock:\n import a1", ["a1"]),
        ("if TYPE_CHECKING:\n import a1\nelse:\n import b1", ["b1"]),
        ("if typing.TYPE_CHECKING:\n import a1", []),
        ("if __name__ == '__main__':\n import a1", []),
        ("if sys.platform == 'x':\n import a1", ["a1"]),
        ("if f():\n import a1", ["a1"]),
        ("while x:\n import a1\nelse:\n import b1", ["a1", "b1"]),
        ("try:\n import tomllib\nexcept ImportError:\n import tomli", []),
        ("import tomllib", ["3.11"]),  # what it needs
        ("import sys\nif sys.version_info >= (3, 11):\n import tomllib", []),
        ("from . import a1", [".a1"]),
        ("import cgi, distutils", []),
    ],
)
def test_imports_that_can_fail_are_not_reported(plan, root, text, needed):
    (root / "x.py").write_text(text)
    found = [warning.split(",")[0].split()[-1] for warning in plan(extra_files=("x.py",)).warnings]
    assert found == needed


def test_folders_on_the_path(plan, root):
    (root / "src" / "deep").mkdir(parents=True)
    (root / "src" / "deep" / "inner.py").write_text("")
    (root / "x.py").write_text("import inner")
    assert len(plan(extra_files=("src", "x.py")).warnings) == 1
    (root / "x.py").write_text("import sys\nsys.path.append(folder)\nimport inner")
    assert plan(extra_files=("src", "x.py")).warnings == ()


def test_the_standard_library_of_every_python():
    modules = image_modules()
    assert {"os", "distutils", "telnetlib", "zoneinfo", "tomllib", "torch", "PIL"} <= modules
    assert "sklearn" not in modules


def test_a_module_beside_the_project_names_its_entry_of_extra_files(plan, root):
    for folder in ("net", "src", "src/prep"):
        (root / folder).mkdir()
    (root / "net" / "__init__.py").write_text("from .ops import x")
    (root / "net" / "ops.py").write_text("x = 1")
    (root / "tools.py").write_text("")
    (root / "src" / "prep" / "ops.py").write_text("")
    (root / "src" / "near.py").write_text("")
    (root / "src" / "main.py").write_text(
        "import net\nimport tools\nimport prep\nimport near\ndef handle(data, context): ..."
    )
    extras = (
        '"net/" (the / keeps the folder)',
        '"tools.py"',
        '"src/prep/" (the / keeps the folder)',
        '"src/near.py"',
    )
    assert plan(handler="src/main.py").warnings == tuple(
        f"src/main.py:{line}: imports {name}, which is not in the archive; "
        f"write {extra} into model.extra-files"
        for line, (name, extra) in enumerate(zip(("net", "tools", "prep", "near"), extras, strict=True), 1)
    )
    files = ("net/", "tools.py", "src/prep/", "src/near.py")
    assert plan(handler="src/main.py", extra_files=files).warnings == ()
    flat = plan(handler="src/main.py", extra_files=("net", *files[1:])).warnings
    package = 'write "net/" (the / keeps the folder) into model.extra-files'
    assert flat == (
        f"net/__init__.py:1: imports .ops, but not from its package; {package}",
        f"src/main.py:1: imports net, which is not in the archive; {package}",
    )
