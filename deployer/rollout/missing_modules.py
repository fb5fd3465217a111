"""Advises how to add a Python module that the serving container lacks. Pure."""

from __future__ import annotations

import re

from deployer.archive.imports import distribution_of

_MISSING = re.compile(r"No module named '(?P<module>\w+)(?:\.[\w.]+)?'")
# The files of TorchServe's own handlers for pictures: they import both packages, and fail at the first.
_VISION = re.compile(r"\((image_classifier|image_segmenter|object_detector|vision_handler)\.py, line")


def advise(explanation: str) -> str:
    """Return the hint for a release that lacks a module; empty if its failure is another one."""
    found = _MISSING.search(explanation)
    if not found or found["module"] == "ts":
        return ""
    file, again = "the file of model.requirements-file", "then run `kdeploy rollout` again."
    if _VISION.search(explanation):
        lines = "`captum` and `torchvision==0.N.*` (0.19 for torch 2.4, 0.28 for torch 2.13)"
        return f"Add the lines {lines} to {file}, {again}"
    line = distribution_of(found["module"])
    return f"Add the line `{line}` to {file}, or add the module to model.extra-files, {again}"
