"""Finds the imports of an archive's Python files that may fail in the serving container.

Imports that can fail without harm do not count: those in a `try` with an `except`, under `TYPE_CHECKING` or
`__main__`, and in `suppress`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from deployer.archive.files import package_folder
from deployer.archive.members import Source
from deployer.archive.requirements import Requirements
from deployer.config import Model
from deployer.files import is_file

# The packages of TorchServe's image for KServe: TorchServe, its requirements/common.txt, common_gpu.txt and
# torch_linux.txt, its kubernetes/kserve/requirements.txt, and what torch, captum and transformers need.
_IMAGE = """
    PIL captum google grpc grpc_tools kserve model_archiver ninja numpy nvgpu packaging pip pkg_resources
    psutil pynvml requests setuptools torch torchaudio torchtext torchvision transformers ts wheel
    workflow_archiver yaml certifi charset_normalizer filelock fsspec huggingface_hub idna jinja2 markupsafe
    matplotlib mpmath networkx regex safetensors sympy tokenizers tqdm typing_extensions urllib3
"""
# Standard modules of Python 3.9 that later versions lack.
_OLD = """
    aifc asynchat asyncore audioop binhex cgi cgitb chunk crypt distutils formatter imghdr imp lib2to3 mailcap
    nis nntplib ossaudiodev parser pipes smtpd sndhdr spwd sunau symbol telnetlib uu xdrlib
"""
_CODE = (".py", ".so", ".pyd")

# Modules whose distribution has another name, and the start of that name.
_DISTRIBUTIONS = {
    "Bio": "biopython",
    "Crypto": "pycryptodome",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-",
    "fitz": "pymupdf",
    "ignite": "pytorch-ignite",
    "PIL": "pillow",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def doubtful_imports(
    parsed: Sequence[tuple[Source, ast.Module]],
    names: Iterable[str],
    model: Model,
    requirements: Requirements,
    root: Path,
) -> Iterator[str]:
    """Yield a warning for each imported module that the serving container may lack.

    `names` are those of all members of the archive. A module beside kdeploy.toml, in the folder `root`, or
    beside the importing file can be added.
    """
    on_path = any(b"sys.path" in source.content for source, _ in parsed)  # any folder can be on it
    held = _modules_of(names, anywhere=on_path) | image_modules()
    held.update(module.partition(".")[0] for module in model.image_modules)

    def known(module: str) -> bool:
        return module in held or any(provides(name, module) for name in requirements.distributions)

    for source, tree in parsed:
        for line, module in sorted(_imports(tree)):
            if module.startswith("."):
                if "/" not in source.name:
                    yield f"{source.path}:{line}: imports {module}, but {_no_package(source, module, root)}"
            elif known(module):
                continue
            elif extra := _extra_file(module, source, root):
                held.add(module)  # one warning per module
                yield (
                    f"{source.path}:{line}: imports {module}, which is not in the archive; "
                    f"write {extra} into model.extra-files"
                )
            elif not requirements.open:
                held.add(module)
                yield (
                    f"{source.path}:{line}: imports {module}, which is neither in the archive nor in its "
                    "requirements; add it to model.requirements-file or model.extra-files, or, if the "
                    "serving image has it, to model.image-modules"
                )


def _no_package(source: Source, module: str, root: Path) -> str:
    """Return why a relative import fails at the top of the archive, and how to write it."""
    folder = package_folder(root / source.path)
    if is_file(folder / "__init__.py") and folder != root:
        shown = folder.relative_to(root) if folder.is_relative_to(root) else folder
        return f'not from its package; write "{shown}/" (the / keeps the folder) into model.extra-files'
    return f"the top of the archive is not a package; write `import {module.lstrip('.')}`"


def _extra_file(module: str, source: Source, root: Path) -> str | None:
    """Return the entry of `model.extra-files` for a module beside kdeploy.toml or beside its importer."""
    for folder in (root, (root / source.path).parent):
        path = folder / module
        shown = path.relative_to(root) if path.is_relative_to(root) else path
        if any(path.glob("*.py")):
            return f'"{shown}/" (the / keeps the folder)'
        if is_file(path.with_name(f"{module}.py")):
            return f'"{shown}.py"'
    return None


def image_modules() -> set[str]:
    """Return the modules of the serving image, and those of Python, also of a newer one."""
    return {*sys.stdlib_module_names, "tomllib", *_OLD.split(), *_IMAGE.split()}


def _modules_of(names: Iterable[str], *, anywhere: bool) -> set[str]:
    """Return the modules of an archive with these members: at its top, or `anywhere` in it."""
    modules: set[str] = set()
    for name in names:
        if name.endswith(_CODE):
            parts = name.split("/")
            modules.update(part.partition(".")[0] for part in (parts if anywhere else parts[:1]))
    return modules


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the module of each import that must succeed. A relative one keeps its dots."""
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
    """Return the children of a node whose imports must succeed."""
    if isinstance(node, ast.Try) and node.handlers:
        return [*node.orelse, *node.finalbody]
    if isinstance(node, ast.If) and _mentions(node.test, "TYPE_CHECKING", "__name__"):
        return node.orelse
    if isinstance(node, ast.With) and any(_mentions(item.context_expr, "suppress") for item in node.items):
        return ()
    return ast.iter_child_nodes(node)


def _mentions(expression: ast.expr, *names: str) -> bool:
    return any(getattr(node, "id", getattr(node, "attr", None)) in names for node in ast.walk(expression))


def distribution_of(module: str) -> str:
    """Return the distribution that most likely contains a module."""
    name = _DISTRIBUTIONS.get(module, module)
    return f"{name}python-headless" if name.endswith("-") else name


def provides(distribution: str, module: str) -> bool:
    """Whether a distribution can contain a module: it is known to, or has a similar name."""
    if distribution.startswith(_DISTRIBUTIONS.get(module, "?")):
        return True
    parts = [part for part in distribution.split("-") if part not in ("py", "python")] or [distribution]
    similar = {_bare("".join(parts[:count])) for count in range(1, len(parts) + 1)}
    return _bare(re.sub(r"[-_.]+", "", module).lower()) in similar


def _bare(name: str) -> str:
    return name.removeprefix("py") or name
