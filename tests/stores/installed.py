"""Installs the servers and downloaders that the tests of object stores need, on first use, into a cache.

Swift, Azurite and KServe's downloader each have a folder in `$XDG_CACHE_HOME/kdeploy-tests`, outside every
checkout and this project's environment. Concurrent test runs install each of them once.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SWIFT = ("swift", "2.38.3")
AZURITE = ("azurite", "3.37.0")
DOWNLOADERS = ("0.21.0", "0.16.0")  # of KServe: the newest, and the oldest on PyPI

# The cache of the user: tests set another HOME later.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdeploy-tests"


def environment(distribution: str, version: str, *beside: str) -> Path:
    """Return the Python of a virtual environment with a distribution and the requirements `beside` it."""

    def install(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
        pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, f"{distribution}=={version}", *beside], check=True, capture_output=True)

    return installed(f"{distribution}-{version}", install) / "bin" / "python"


def package(name: str, version: str) -> Path:
    """Return the folder of an installed npm package."""

    def install(folder: Path) -> None:
        folder.mkdir()
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder]
        subprocess.run([*npm, f"{name}@{version}"], check=True, capture_output=True)

    return installed(f"{name}-{version}", install)


def installed(name: str, install: Callable[[Path], None]) -> Path:
    """Return a folder of the cache. Install it first if it is missing; one rename makes it visible."""
    place = CACHE / name
    if place.is_dir():
        return place
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.is_dir():
            return place
        building = CACHE / f"{name}.partial"
        shutil.rmtree(building, ignore_errors=True)
        try:
            install(building)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            shutil.rmtree(building, ignore_errors=True)
            stderr = getattr(error, "stderr", b"") or b""
            pytest.skip(
                f"cannot install {name} into {CACHE}: run `make test` with access to PyPI and npm: "
                f"{error} {stderr.decode(errors='replace')[-300:]}"
            )
        # Its programs are started as `bin/python FILE`, so the folder can be renamed.
        building.rename(place)
    return place
