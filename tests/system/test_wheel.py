"""The wheel contains the handler adapter and the manifests."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_wheel_contains_and_finds_manifests_and_handler(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(installed)
        names = file.namelist()
    assert not [name for name in names if name.endswith((".pt", ".mar")) or "tests/" in name]
    code = "from deployer.shipped import shipped; print(shipped('handler'), shipped('manifests'), sep='\\n')"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    found = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    handler, manifests = (Path(line) for line in found.stdout.splitlines())
    assert handler.is_relative_to(installed)
    adapter = {path.name: path.read_bytes() for path in (ROOT / "handler").glob("*.py")}
    assert {path.name: path.read_bytes() for path in handler.glob("*.py")} == adapter
    assert {path.name for path in manifests.iterdir()} == {
        path.name for path in (ROOT / "manifests").iterdir() if path.is_file()
    }


def test_a_checkout_finds_its_own_files() -> None:
    from deployer.shipped import shipped

    assert shipped("handler") == ROOT / "handler"
