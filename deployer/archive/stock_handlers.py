"""Finds the packages that TorchServe's own handlers import and that TorchServe's wheel does not declare.

TorchServe's image has them. A machine with TorchServe from PyPI has not, unless they are installed.
"""

from __future__ import annotations

import re
from pathlib import Path

from deployer.archive.requirements import read_requirements
from deployer.config import Model
from deployer.errors import ArchiveError
from deployer.files import read_bytes

_VISION, _TEXT = ("captum", "torchvision"), ("captum",)
_PACKAGES = {
    "image_classifier": _VISION,
    "image_segmenter": _VISION,
    "object_detector": _VISION,
    "vision_handler": _VISION,
    "text_classifier": _TEXT,
    "text_handler": _TEXT,
}
_IMPORT = re.compile(rb"\bts\.torch_handler(?:\.|\s+import\s+)(\w+)")


def needed_packages(model: Model, root: Path) -> tuple[str, ...]:
    """Return the packages that a stock handler needs, and that the model's requirements do not list.

    Also for a handler that imports a stock one. A file that cannot be read lists nothing: the archive reports
    it.
    """
    used = [model.handler]
    if model.handler not in _PACKAGES:
        source = _read(root / f"{model.handler.partition(':')[0].removesuffix('.py')}.py")
        used = [name.decode() for name in _IMPORT.findall(source)]
    needed = {package for name in used for package in _PACKAGES.get(name, ())}
    if needed and model.requirements_file:
        try:
            listed = read_requirements(_read(root / model.requirements_file), model.requirements_file)
        except ArchiveError:
            return tuple(sorted(needed))
        needed -= set(listed.distributions)
    return tuple(sorted(needed))


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError:
        return b""
