from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import deployer.archive.files as files_module
import deployer.archive.plan as plan_module
from deployer.archive import DigestCache, digest_archive, plan_archive
from deployer.archive.stream import unreadable
from deployer.config import Model
from deployer.errors import ArchiveError
from deployer.shipped import shipped


def contents(archive):
    return {
        member.name: member.source if isinstance(member.source, bytes) else member.source.read_bytes()
        for member in archive.members
    }


def model_of_manifest(archive):
    return json.loads(contents(archive)["MAR-INF/MANIFEST.json"])["model"]


def test_the_adapter_is_packed_before_the_handler(plan):
    archive = plan()
    held = contents(archive)
    adapter = {path.name: path.read_bytes() for path in shipped("handler").glob("*.py")}
    own = ["MAR-INF/MANIFEST.json", "handler.py", "kdeploy_handler.json", "weights.pt"]
    assert list(held) == sorted([*own, *adapter])
    assert {name: held[name] for name in adapter} == adapter
    assert {"kdeploy_handler.py", "kdeploy_batching.py"} <= set(adapter)
    assert json.loads(held["kdeploy_handler.json"]) == {"handler": "handler.py"}
    assert model_of_manifest(archive) == {
        "modelName": "m",
        "serializedFile": "weights.pt",
        "handler": "kdeploy_handler.py",
        "modelVersion": "1.0",
    }
    assert archive.warnings == ()
    assert archive.file_name == "m.mar"


@pytest.mark.parametrize(
    ("handler", "written", "packed"),
    [
        ("handler.py", "handler.py", True),
        ("handler", "handler", True),
        ("handler.py:predict", "handler.py:predict", True),
        ("handler:predict", "handler:predict", True),
        ("below/handler.py:predict", "handler.py:predict", True),
        ("image_classifier", "image_classifier", False),
    ],
)
def test_every_way_to_name_a_handler(plan, root, handler, written, packed):
    (root / "handler.py").write_text("def predict(data, context): ...\ndef handle(data, context): ...\n")
    (root / "below").mkdir()
    (root / "below" / "handler.py").write_text("def predict(data, context): ...\n")
    held = contents(plan(handler=handler))
    assert json.loads(held["kdeploy_handler.json"]) == {"handler": written}
    assert ("handler.py" in held) is packed


def test_a_torchserve_handler_has_precedence_over_a_file_of_its_name(plan, root):
    (root / "image_classifier.py").write_text("")
    assert "image_classifier.py" not in contents(plan(handler="image_classifier"))


@pytest.mark.parametrize(
    ("handler", "what", "hint"),
    [
        ("missing.py", "missing.py not found", "relative to"),
        ("image_clasifier", "image_clasifier.py not found", "image_classifier"),
        ("handler.py:", "invalid function name ''", "file.py:function"),
        ("handler.py:a.b", "invalid function name 'a.b'", "file.py:function"),
        ("my.handler.py", "cannot import 'my.handler.py'", "without another dot"),
        (".py", "cannot import '.py'", "without another dot"),
        ("folder.py", "folder.py is a folder", "relative to"),
        ("nul\0.py", "control character", "Rename"),
    ],
)
def test_an_invalid_handler(plan, root, handler, what, hint):
    (root / "folder.py").mkdir()
    with pytest.raises(ArchiveError) as caught:
        plan(handler=handler)
    assert what in caught.value.what
    assert hint in caught.value.hint
    assert caught.value.where == "kdeploy.toml: model.handler"


@pytest.mark.parametrize("key", ["serialized_file", "model_file", "requirements_file", "config_file"])
@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("none.pt", "not found"),
        ("", "is a folder"),
        ("pipe", "is a device or pipe"),
        ("/dev/null", "device"),
    ],
)
def test_files_that_cannot_be_packed(plan, root, key, file, what):
    os.mkfifo(root / "pipe")
    with pytest.raises(ArchiveError, match=what) as caught:
        plan(**{key: file})
    assert caught.value.where == f"kdeploy.toml: model.{key.replace('_', '-')}"


def test_a_file_without_read_permission():
    script = """
import os, sys
from pathlib import Path
import model_archiver.model_packaging_utils
from deployer.archive import DigestCache, plan_archive
from deployer.archive.stream import unreadable
from deployer.config import Model
from deployer.errors import ArchiveError
root = Path(sys.argv[1])
model = Model(name="m", version="1", handler="base_handler", serialized_file="secret.pt")
if os.getuid() == 0:  # root can read every file
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    plan_archive(model, root, DigestCache(root / "digests.json"))
except ArchiveError as error:
    print(error)
"""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        (Path(name) / "secret.pt").write_bytes(b"weights")
        (Path(name) / "secret.pt").chmod(0)
        run = subprocess.run(
            [sys.executable, "-c", script, name], capture_output=True, text=True, check=False
        )
    assert run.stdout == "kdeploy.toml: model.serialized-file: cannot read secret.pt: Permission denied\n", (
        run.stderr
    )


def test_empty_or_truncated_weights(plan, root):
    (root / "empty.pt").touch()
    with pytest.raises(ArchiveError, match=r"empty.pt is empty"):
        plan(serialized_file="empty.pt")
    whole = b"PK\x03\x04" + b"tensor" * 20_000 + b"PK\x05\x06" + bytes(18)
    (root / "torch.pt").write_bytes(whole)
    plan(serialized_file="torch.pt")
    (root / "torch.pt").write_bytes(whole[:-30])
    with pytest.raises(ArchiveError, match=r"torch.pt is truncated"):
        plan(serialized_file="torch.pt")


def test_weights_that_cannot_be_read_twice(plan, monkeypatch):
    real = files_module.open_source

    def fails(path):
        if path in opened:
            raise OSError(5, "Input/output error")
        opened.append(path)
        return real(path)

    opened = []
    monkeypatch.setattr(files_module, "open_source", fails)
    with pytest.raises(ArchiveError, match="Input/output error"):
        plan()


def test_large_files_are_read_only_once(plan, root, digests):
    weights = root / "weights.pt"
    weights.write_bytes(os.urandom(300_000))
    archive = plan()
    assert not archive.sealed
    with pytest.raises(ValueError, match=r"weights.pt"):
        _ = archive.digest
    later = DigestCache(digests._path, clock=lambda: weights.stat().st_ctime_ns + 10**10)
    sealed = digest_archive(archive, later)
    assert sealed.sealed
    again = plan_archive(
        Model(name="m", version="1.0", handler="handler.py", serialized_file="weights.pt"),
        root,
        DigestCache(digests._path),
    )
    assert again == sealed
    assert again.digest == sealed.digest
    weights.write_bytes(os.urandom(300_000))
    assert not plan().sealed


def test_a_relative_root(plan, root, digests, monkeypatch):
    monkeypatch.chdir(root.parent)
    (root / "requirements.txt").write_text("numpy\n")
    model = {
        "handler": "handler.py",
        "serialized_file": "weights.pt",
        "requirements_file": "requirements.txt",
    }
    relative = plan_archive(Model(name="m", version="1.0", **model), Path(root.name), digests)
    assert relative.digest == plan(**model).digest


def test_the_digest_depends_only_on_names_and_contents(plan, root):
    digest = plan().digest
    assert digest.startswith("sha256:")
    assert plan(archive_format="tgz").digest == digest
    os.utime(root / "weights.pt", (1, 1))
    assert plan().digest == digest
    (root / "weights.pt").write_bytes(b"weightz")
    assert plan().digest != digest
    (root / "weights.pt").write_bytes(b"weights")
    assert plan().digest == digest
    assert plan(version="2.0").digest != digest
    (root / "weights.pt").rename(root / "weights.pth")
    assert plan(serialized_file="weights.pth").digest != digest


@pytest.mark.parametrize(
    ("archive_format", "file"),
    [("zip-store", "m.mar"), ("default", "m.mar"), ("tgz", "m.tar.gz"), ("no-archive", "m")],
)
def test_archives_have_the_names_of_torch_model_archiver(plan, archive_format, file):
    archive = plan(archive_format=archive_format)
    assert archive.file_name == file
    assert archive.size == sum(member.size for member in archive.members)


def test_a_missing_handler_adapter(plan, monkeypatch, tmp_path):
    monkeypatch.setattr(plan_module, "shipped", lambda folder: tmp_path / folder)
    with pytest.raises(ArchiveError, match="handler adapter not found"):
        plan()


def test_importing_the_package_loads_no_heavy_module():
    script = "import sys, deployer.archive; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"yaml", "model_archiver", "zipfile", "tarfile", "torch"} & set(run.stdout.split())


def test_requirements_turn_on_use_venv(plan, root):
    (root / "requirements.txt").write_text("scikit-learn\n")
    archive = plan(requirements_file="requirements.txt")
    assert contents(archive)["model-config.yaml"] == b"useVenv: true\n"
    assert model_of_manifest(archive)["configFile"] == "model-config.yaml"
    assert model_of_manifest(archive)["requirementsFile"] == "requirements.txt"

    (root / "own.yaml").write_text("# mine\nminWorkers: 1")
    archive = plan(requirements_file="requirements.txt", config_file="own.yaml")
    assert contents(archive)["own.yaml"] == b"# mine\nminWorkers: 1\nuseVenv: true\n"
    assert model_of_manifest(archive)["configFile"] == "own.yaml"
    assert "model-config.yaml" not in contents(archive)
    assert contents(plan(config_file="own.yaml"))["own.yaml"] == b"# mine\nminWorkers: 1"


def test_requirements_that_name_a_missing_file(plan, root):
    (root / "requirements.txt").write_text("-r base.txt\n-c https://x/y.txt\n-r ${X}/y\n")
    (root / "base.txt").write_text("numpy\n")
    with pytest.raises(ArchiveError) as caught:
        plan(requirements_file="requirements.txt")
    assert caught.value.where == "requirements.txt:1"
    plan(requirements_file="requirements.txt", extra_files=("base.txt",))
    (root / "base.txt").write_text("-i https://user:planted@host/simple\nnumpy\n")
    with pytest.raises(ArchiveError, match="a URL contains credentials") as caught:
        plan(requirements_file="requirements.txt", extra_files=("base.txt",))
    assert caught.value.where == "base.txt:1"
    assert "planted" not in str(caught.value)
    (root / "requirements.txt").write_text("-r base.txt\n")
    os.truncate(root / "base.txt", 9 << 20)
    with pytest.raises(ArchiveError, match=r"base\.txt has 9,437,184 bytes"):
        plan(requirements_file="requirements.txt", extra_files=("base.txt",))


@pytest.mark.parametrize("key", ["requirements_file", "config_file"])
def test_a_huge_text_file(plan, root, key):
    with (root / "big.txt").open("wb") as file:
        file.truncate(9 << 20)
    with pytest.raises(ArchiveError, match=r"big.txt has 9,437,184 bytes"):
        plan(**{key: "big.txt"})


def test_a_huge_python_file_is_packed_without_parsing(plan, root):
    with (root / "table.py").open("wb") as file:
        file.truncate(9 << 20)
    assert not plan(extra_files=("table.py",)).sealed


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(), "x not found"),
        (OSError(5, "Input/output error"), "cannot read x: Input/output error"),
        (OSError("is a folder"), "x is a folder"),
        (ValueError("embedded null byte"), "cannot read x: embedded null byte"),
    ],
)
def test_the_message_for_a_file_that_cannot_be_read(error, message):
    assert unreadable("x", error) == message


def test_weights_that_are_a_pointer_of_git_lfs(plan, root):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 100000000\n"
    (root / "weights.pt").write_text(pointer)
    with pytest.raises(ArchiveError, match=r"weights\.pt is a pointer of Git LFS") as caught:
        plan()
    assert caught.value.where == "kdeploy.toml: model.serialized-file"
    assert "git lfs pull" in caught.value.hint
