"""The same inputs give the members and the manifest of torch-model-archiver, plus kdeploy's own members."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deployer.archive import plan_archive, write_archive
from deployer.config import Model
from deployer.shipped import shipped

ADDED = {"kdeploy_handler.json", *(path.name for path in shipped("handler").glob("*.py"))}


@pytest.fixture
def project(root: Path) -> Path:
    (root / "src").mkdir()
    (root / "src" / "my_handler.py").write_text(
        "def handle(data, context): ...\ndef predict(data, context): ...\n"
    )
    (root / "src" / "net.py").write_text("class Net: pass\n")
    (root / "requirements.txt").write_text("numpy\n")
    (root / "own.yaml").write_text("minWorkers: 1\nuseVenv: true\n")
    (root / "index_to_name.json").write_text("{}")
    for name in (
        "assets/a.txt",
        "assets/deep/b.txt",
        "assets/.git/c",
        "assets/deep/__pycache__/d.pyc",
        "g1.txt",
        "g2.txt",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def archive_with_torch_model_archiver(model: Model, root: Path, out: Path) -> dict[str, bytes]:
    out.mkdir()
    flags = {
        "--model-name": model.name, "--version": model.version, "--handler": model.handler,
        "--runtime": model.runtime,
        "--serialized-file": model.serialized_file, "--model-file": model.model_file,
        "--extra-files": ",".join(model.extra_files) or None, "--requirements-file": model.requirements_file,
        "--config-file": model.config_file, "--archive-format": model.archive_format,
        "--export-path": str(out),
    }  # fmt: skip
    command = [sys.executable, "-m", "model_archiver.model_packaging"]
    for flag, value in flags.items():
        command += [flag, value] if value is not None else []
    (out / "tmp").mkdir()
    env = {"TMPDIR": str(out / "tmp"), "PATH": "/usr/bin:/bin"}
    subprocess.run(command, cwd=root, env=env, check=True, capture_output=True)
    return members(out / f"{model.name}.mar")


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as made:
        return {name: made.read(name) for name in made.namelist()}


@pytest.mark.parametrize(
    "values",
    [
        {"handler": "image_classifier", "model_file": "src/net.py"},
        {"handler": "src/my_handler.py"},
        {"handler": "src/my_handler:predict", "archive_format": "default"},
        {"handler": "src/my_handler.py", "extra_files": ("assets", "g*.txt", "./index_to_name.json", "src")},
        {"handler": "base_handler", "requirements_file": "requirements.txt", "config_file": "own.yaml"},
        {"handler": "base_handler", "runtime": "python3", "config_file": "own.yaml"},
    ],
)
def test_members_and_manifest_are_torch_model_archivers(project, digests, tmp_path, values):
    model = Model(**{"name": "m", "version": "1.0", "serialized_file": "weights.pt", **values})
    write_archive(plan_archive(model, project, digests), tmp_path / "ours.mar", digests)
    ours, theirs = (
        members(tmp_path / "ours.mar"),
        archive_with_torch_model_archiver(model, project, tmp_path / "theirs"),
    )
    our_manifest = json.loads(ours.pop("MAR-INF/MANIFEST.json"))
    their_manifest = json.loads(theirs.pop("MAR-INF/MANIFEST.json"))
    assert set(ours) - set(theirs) == ADDED
    assert {name: content for name, content in ours.items() if name not in ADDED} == theirs
    written = their_manifest["model"]["handler"]
    assert json.loads(ours["kdeploy_handler.json"]) == {"handler": written}
    their_manifest["model"]["handler"] = "kdeploy_handler.py"
    their_manifest["createdOn"] = "01/01/1980 00:00:00"
    assert our_manifest == their_manifest
    assert list(our_manifest) == list(their_manifest)
