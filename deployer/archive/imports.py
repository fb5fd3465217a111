"""Which modules an archive's Python files import that the serving image may not have.

Only a warning comes of it, for nobody but the image knows what it holds: imports that fail softly (`try` with
`except ImportError`, `TYPE_CHECKING`) are left out, and where a module might come from a requirement it does.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from deployer.archive.syntax import Source

# What TorchServe's image for KServe is built from: TorchServe, its requirements/common.txt, common_gpu.txt
# and torch_linux.txt, its kubernetes/kserve/requirements.txt; and what torch, captum and transformers need.
IMAGE_MODULES = frozenset(
    [
        "PIL",
        "captum",
        "google",
        "grpc",
        "grpc_tools",
        "kserve",
        "model_archiver",
        "ninja",
        "numpy",
        "nvgpu",
        "packaging",
        "pip",
        "pkg_resources",
        "psutil",
        "pynvml",
        "requests",
        "setuptools",
        "torch",
        "torchaudio",
        "torchtext",
        "torchvision",
        "transformers",
        "ts",
        "wheel",
        "workflow_archiver",
        "yaml",
        "certifi",
        "charset_normalizer",
        "filelock",
        "fsspec",
        "huggingface_hub",
        "idna",
        "jinja2",
        "markupsafe",
        "matplotlib",
        "mpmath",
        "networkx",
        "regex",
        "safetensors",
        "sympy",
        "tokenizers",
        "tqdm",
        "typing_extensions",
        "urllib3",
    ]
)

# Standard modules that came or went, by the minor version of the first Python 3 with or without them.
_CAME = {"graphlib": 9, "zoneinfo": 9, "tomllib": 11, "annotationlib": 14, "compression": 14}
_WENT = {
    **dict.fromkeys(("dummy_threading", "_dummy_thread"), 9),
    **dict.fromkeys(("formatter", "parser", "symbol", "macpath"), 10),
    **dict.fromkeys(("binhex",), 11),
    **dict.fromkeys(("asynchat", "asyncore", "distutils", "imp", "smtpd"), 12),
    **dict.fromkeys(
        [
            "aifc",
            "audioop",
            "cgi",
            "cgitb",
            "chunk",
            "crypt",
            "imghdr",
            "lib2to3",
            "mailcap",
            "msilib",
            "nis",
            "nntplib",
            "ossaudiodev",
            "pipes",
            "sndhdr",
            "spwd",
            "sunau",
            "telnetlib",
            "uu",
            "xdrlib",
        ],
        13,
    ),
}

_SOFT = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
_CODE = (".py", ".so", ".pyd")


def in_standard_library(module: str, minor: int) -> bool:
    """Whether Python 3.`minor` brings a top-level module."""
    if module in _CAME:
        return minor >= _CAME[module]
    if module in _WENT:
        return minor < _WENT[module]
    return module in sys.stdlib_module_names


def modules_of(names: Iterable[str], *, anywhere: bool = False) -> set[str]:
    """Return the modules that an archive with these members offers: at its top, or `anywhere` in it."""
    modules: set[str] = set()
    for name in names:
        if name.endswith(_CODE):
            parts = name.split("/")
            modules.update(part.partition(".")[0] for part in (parts if anywhere else parts[:1]))
    return modules


def changes_path(source: Source) -> bool:
    """Whether a file seems to add folders to the places where modules are looked for."""
    return b"sys.path" in source.content


def missing_imports(
    parsed: Iterable[tuple[Source, ast.Module]], known: Callable[[str], bool]
) -> list[tuple[str, str]]:
    """Return the modules that are imported and not `known`, each with the first file:line that needs it.

    A relative import keeps its dots; it is missing where the file is in no package.
    """
    missing: dict[str, str] = {}
    for source, tree in parsed:
        within_package = "/" in source.name

        def known_here(module: str, within_package: bool = within_package) -> bool:
            return within_package if module.startswith(".") else known(module)

        for module, line in _needed(tree.body, known_here):
            if not known_here(module):
                missing.setdefault(module, f"{source.path}:{line}")
    return list(missing.items())


def _needed(body: Iterable[ast.AST], known: Callable[[str], bool]) -> Iterator[tuple[str, int]]:
    for statement in body:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield alias.name.partition(".")[0], statement.lineno
        elif isinstance(statement, ast.ImportFrom):
            module = (statement.module or statement.names[0].name).partition(".")[0]
            yield "." * statement.level + module, statement.lineno
        else:
            for block in _blocks(statement, known):
                yield from _needed(block, known)


def _blocks(statement: ast.AST, known: Callable[[str], bool]) -> Iterator[Sequence[ast.AST]]:
    """Yield the blocks within a statement that have to run."""
    blocks = {
        name: getattr(statement, name, ()) for name in ("body", "handlers", "cases", "orelse", "finalbody")
    }
    if (isinstance(statement, ast.If) and _is_elsewhere(statement.test)) or (
        isinstance(statement, ast.With) and any(_suppresses(item.context_expr) for item in statement.items)
    ):
        del blocks["body"]
    elif any(_catches(handler) for handler in blocks["handlers"]):
        if all(known(module) for module, _ in _needed(blocks["body"], known)):
            del blocks["handlers"]  # the way out is not needed
        del blocks["body"]
    yield from blocks.values()


def _is_elsewhere(test: ast.expr) -> bool:
    """Whether a condition is `TYPE_CHECKING` or `__name__ == "__main__"`, which do not hold in a worker."""
    if isinstance(test, ast.Compare):
        return _last_name(test.left) == "__name__"
    return _last_name(test) == "TYPE_CHECKING"


def _suppresses(expression: ast.expr) -> bool:
    return (
        isinstance(expression, ast.Call)
        and _last_name(expression.func) == "suppress"
        and any(_last_name(argument) in _SOFT for argument in expression.args)
    )


def _catches(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(_last_name(kind) in _SOFT for kind in caught)


def _last_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None
