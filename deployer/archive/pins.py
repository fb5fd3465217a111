"""Versions and wheels that certainly cannot be installed on the serving image's Python. Pure."""

from __future__ import annotations

import re

# The newest version that PyPI has for a Python 3 minor; later ones need a newer Python.
_NEWEST = {
    "matplotlib": {9: "3.9"},
    "numba": {9: "0.60"},
    "numpy": {9: "2.0", 10: "2.2"},
    "onnxruntime": {9: "1.19"},
    "pandas": {9: "2.3", 10: "2.3"},
    "pillow": {9: "11.3"},
    "scikit-image": {9: "0.24"},
    "scikit-learn": {9: "1.6", 10: "1.7"},
    "scipy": {9: "1.13", 10: "1.15"},
    "torch": {9: "2.8"},
    "torchvision": {9: "0.23"},
}
_LOWEST = re.compile(r"(?:===?|>=|~=)\s*(\d+(?:\.\d+)*)")
_WHEEL = re.compile(
    r"[^/\\]+-[^/\\-]+(?:-\d[^/\\-]*)?-(?P<python>[^/\\-]+)-(?P<abi>[^/\\-]+)-(?P<platform>[^/\\-]+)\.whl$"
)


def impossible_version(name: str, pinned: str, minor: int) -> str | None:
    """Return the newest possible version of a distribution if `pinned` ("==2.4.6") needs a newer Python."""
    newest = _NEWEST.get(name, {}).get(minor)
    lowest = _LOWEST.findall(pinned)
    if newest and any(_parts(version) > _parts(newest) for version in lowest):
        return newest
    return None


def _parts(version: str) -> tuple[int, int]:
    major, minor, *_ = [*version.split("."), "0"]
    return int(major), int(minor)


def impossible_wheel(place: str, minor: int) -> str | None:
    """Return why a wheel, by its file name, cannot be installed in a Linux container, or None."""
    found = _WHEEL.search(place.partition("#")[0])
    if not found:
        return None
    if not any("linux" in one or one == "any" for one in found["platform"].split(".")):
        return f"is a wheel for {found['platform']}, and the serving container has Linux"
    pythons = found["python"].split(".")
    if not any(_fits(python, found["abi"], minor) for python in pythons):
        return f"is a wheel for {found['python']}, and the serving image has Python 3.{minor}"
    return None


def _fits(python: str, abi: str, minor: int) -> bool:
    tag = re.fullmatch(r"(?:cp|py)3(\d*)", python)
    if not tag:
        return False
    if not tag[1]:
        return True
    return int(tag[1]) == minor or (int(tag[1]) < minor and (abi in ("none", "abi3")))
