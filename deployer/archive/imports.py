"""Which modules a Python file imports, and which an archive and the serving image have.

Imports that need not succeed are left out: those in a `try` with an `except`, under `TYPE_CHECKING` or
`__main__`, and in `suppress`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator

# What TorchServe's image for KServe is built from: TorchServe, its requirements/common.txt, common_gpu.txt
# and torch_linux.txt, its kubernetes/kserve/requirements.txt; and what torch, captum and transformers need.
_IMAGE = """
    PIL captum google grpc grpc_tools kserve model_archiver ninja numpy nvgpu packaging pip pkg_resources
    psutil pynvml requests setuptools torch torchaudio torchtext torchvision transformers ts wheel
    workflow_archiver yaml certifi charset_normalizer filelock fsspec huggingface_hub idna jinja2 markupsafe
    matplotlib mpmath networkx regex safetensors sympy tokenizers tqdm typing_extensions urllib3
"""
# Standard modules of Python 3.9 that later ones lack.
_OLD = """
    aifc asynchat asyncore audioop binhex cgi cgitb chunk crypt distutils formatter imghdr imp lib2to3 mailcap
    nis nntplib ossaudiodev parser pipes smtpd sndhdr spwd sunau symbol telnetlib uu xdrlib
"""
_CODE = (".py", ".so", ".pyd")


def image_modules(minor: int) -> set[str]:
    """Return the modules that the serving image is known to have on Python 3.`minor`."""
    modules = {*sys.stdlib_module_names, *_OLD.split(), *_IMAGE.split()}
    return modules | {"tomllib"} if minor >= 11 else modules - {"tomllib"}


def modules_of(names: Iterable[str], *, anywhere: bool = False) -> set[str]:
    """Return the modules that an archive with these members offers: at its top, or `anywhere` in it."""
    modules: set[str] = set()
    for name in names:
        if name.endswith(_CODE):
            parts = name.split("/")
            modules.update(part.partition(".")[0] for part in (parts if anywhere else parts[:1]))
    return modules


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the module of each import that has to succeed; a relative one keeps its dots."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or node.names[0].name
            yield node.lineno, "." * node.level + module.partition(".")[0]
        else:
            pending += _needed(node)


def _needed(node: ast.AST) -> Iterable[ast.AST]:
    """Return the children of a node whose imports have to succeed."""
    if isinstance(node, ast.Try) and node.handlers:
        return [*node.orelse, *node.finalbody]
    if isinstance(node, ast.If) and _mentions(node.test, "TYPE_CHECKING", "__name__"):
        return node.orelse
    if isinstance(node, ast.With) and any(_mentions(item.context_expr, "suppress") for item in node.items):
        return ()
    return ast.iter_child_nodes(node)


def _mentions(expression: ast.expr, *names: str) -> bool:
    return any(getattr(node, "id", getattr(node, "attr", None)) in names for node in ast.walk(expression))
