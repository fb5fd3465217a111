"""What the tests of the object stores run against, installed on first use into a cache of this user.

Swift, Azurite and KServe's downloader each get a folder of their own in `$XDG_CACHE_HOME/kdeploy-tests`,
outside every checkout and never in this project's environment. Two test runs at once install a thing once.
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
SDK = ("kserve", "0.21.0", "kubernetes<37")  # whose models newer clients cannot take
DOWNLOADERS = ("0.21.0", "0.16.0")  # of KServe: the newest, and the oldest that PyPI has

# Of whoever runs the tests, which give themselves another home.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdeploy-tests"


def environment(distribution: str, version: str, *beside: str) -> Path:
    """Return the Python of a virtual environment that holds a distribution and what goes beside it."""

    def install(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
        pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, f"{distribution}=={version}", *beside], check=True, capture_output=True)

    return installed(f"{distribution}-{version}", install) / "bin" / "python"


def package(name: str, version: str) -> Path:
    """Return the folder in which one package of npm is installed."""

    def install(folder: Path) -> None:
        folder.mkdir()
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder]
        subprocess.run([*npm, f"{name}@{version}"], check=True, capture_output=True)

    return installed(f"{name}-{version}", install)


def installed(name: str, install: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, installing it unless it is there; it appears there whole."""
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
            said = getattr(error, "stderr", b"") or b""
            pytest.skip(
                f"{name} cannot be installed into {CACHE}: `make test` does it, given PyPI and npm: "
                f"{error} {said.decode(errors='replace')[-300:]}"
            )
        # What is in there is run as `bin/python FILE`, so that it does not matter that it moves.
        building.rename(place)
    return place
