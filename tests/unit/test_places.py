"""Places that TorchServe can write to, for a user that the image does not know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from manifests.places import with_places
from tests.users import USER, as_unknown_user

PROGRAM = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from manifests.places import with_places
import getpass, tempfile
os.environ.update(with_places(dict(os.environ)))
print(json.dumps([os.environ.get("HOME"), os.environ.get("TEMP"), os.environ.get("LOG_LOCATION"),
    os.environ.get("USER"), getpass.getuser(), os.getuid(), os.getgid()]))
"""


def test_writable_places_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    given = {"HOME": str(tmp_path), "TEMP": str(tmp_path / "tmp"), "LOG_LOCATION": "logs", "USER": "me"}
    assert with_places(given) == given
    assert with_places({"HOME": str(tmp_path)}) == {"HOME": str(tmp_path)}  # this user has a name


def run(folder: Path, **environment: str) -> list[Any]:
    """Run the program as a user without a name, in a folder."""
    root = str(Path(__file__).parents[2])
    command = as_unknown_user([sys.executable, "-c", PROGRAM, root])
    given = {"PATH": os.environ["PATH"], **environment}
    ended = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(ended.stdout)
    return found


def test_an_unknown_user_gets_a_home_a_temporary_folder_and_a_name(tmp_path: Path) -> None:
    image, scratch = tmp_path / "home", tmp_path / "scratch"
    (image / "tmp").mkdir(parents=True)
    scratch.mkdir()
    for folder in (image / "tmp", image):
        folder.chmod(0o555)
    given = {"HOME": str(image), "TEMP": str(image / "tmp"), "TMPDIR": str(scratch)}
    *places, name, found, user, group = run(image, **given)
    assert sorted(place.rpartition("-")[0] for place in places) == [
        f"{scratch}/kdeploy-{name}" for name in ("home", "log_location", "temp")
    ]
    assert (name, found, user, group) == ("torchserve", "torchserve", USER, 0)


def test_folders_that_the_user_can_write_stay(tmp_path: Path) -> None:
    *places, name, found, _, _ = run(tmp_path, HOME=str(tmp_path), LOGNAME="someone")
    assert places == [str(tmp_path), None, None]
    assert (name, found) == (None, "someone")
