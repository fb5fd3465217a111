"""A finished model archive is taken over as it is; a hostile one unpacks nothing."""

from __future__ import annotations

import io
import json
import stat
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deployer.archive import ready
from deployer.archive.ready import files_of, take_archive, unpack
from deployer.errors import ArchiveError

HANDLER = b"def handle(data, context):\n    return data\n"
FILES = {"handler.py": HANDLER, "net.pt": b"weights", "pkg/__init__.py": b"", "pkg/sub/__init__.py": b""}


def manifest(**model: Any) -> bytes:
    described = {"modelName": "cats", "modelVersion": "2.1", "handler": "handler.py", **model}
    return json.dumps({"runtime": "python", "model": described, "team": "vision"}).encode()


def write_zip(path: Path, files: Mapping[str, bytes], *, deflate: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def mar(folder: Path, files: Mapping[str, bytes] = FILES, **model: Any) -> Path:
    return write_zip(folder / "cats.mar", {**files, "MAR-INF/MANIFEST.json": manifest(**model)})


def refusal(path: Path) -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        take_archive(path, path.parent / "cache")
    cache = path.parent / "cache"
    assert not cache.exists() or list(cache.iterdir()) == []
    return caught.value


class TestTaken:
    @pytest.mark.parametrize("kind", ["stored", "deflated", "tgz", "tgz in a folder", "folder"])
    def test_every_format_of_torch_model_archiver(self, tmp_path: Path, kind: str) -> None:
        whole = {**FILES, "MAR-INF/MANIFEST.json": manifest(serializedFile="net.pt")}
        path = tmp_path / "cats"
        if kind == "folder":
            write_folder(path, whole)
        elif kind.startswith("tgz"):
            prefix = "cats/" if "folder" in kind else ""
            write_tar(path, {prefix + name: content for name, content in whole.items()})
        else:
            write_zip(path, whole, deflate=kind == "deflated")
        taken = take_archive(path, tmp_path / "cache")
        assert taken.model == {
            "name": "cats",
            "version": "2.1",
            "handler": "handler.py",
            "serialized-file": "net.pt",
        }
        assert {name: file.read_bytes() for name, file in files_of(taken.folder)} == FILES
        assert taken.manifest["team"] == "vision"

    def test_what_systems_add_is_left_out(self, tmp_path: Path) -> None:
        junk = {"__MACOSX/._handler.py": b"x", "pkg/.DS_Store": b"x", "pkg/__pycache__/a.pyc": b"x"}
        taken = take_archive(mar(tmp_path, {**FILES, **junk}), tmp_path / "cache")
        assert {name for name, _ in files_of(taken.folder)} == set(FILES)

    def test_a_version_is_1_0_unless_the_manifest_has_one(self, tmp_path: Path) -> None:
        assert take_archive(mar(tmp_path, modelVersion=None), tmp_path / "cache").model["version"] == "1.0"

    def test_an_archive_without_a_name_has_none(self, tmp_path: Path) -> None:
        assert "name" not in take_archive(mar(tmp_path, modelName=""), tmp_path / "cache").model

    @pytest.mark.parametrize(
        ("handler", "read"),
        [
            ("/home/ci/build/handler.py", "handler.py"),
            ("src/handler.py", "handler.py"),
            ("pkg/__init__.py", "pkg/__init__.py"),
            ("handler.py:handle", "handler.py:handle"),
            ("image_classifier", "image_classifier"),
        ],
    )
    def test_a_handler_is_found_as_torchserve_imports_it(
        self, tmp_path: Path, handler: str, read: str
    ) -> None:
        assert take_archive(mar(tmp_path, handler=handler), tmp_path / "cache").model["handler"] == read

    def test_unchanged_archives_are_unpacked_once(self, tmp_path: Path) -> None:
        path = mar(tmp_path)
        taken = take_archive(path, tmp_path / "cache")
        (taken.folder / "mark").touch()
        assert (take_archive(path, tmp_path / "cache").folder / "mark").exists()
        path.unlink()
        mar(tmp_path, {**FILES, "more.txt": b"x"})
        assert take_archive(path, tmp_path / "cache").folder != taken.folder

    def test_a_changed_folder_is_unpacked_again(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "made", {**FILES, "MAR-INF/MANIFEST.json": manifest()})
        before = take_archive(folder, tmp_path / "cache").folder
        assert take_archive(folder, tmp_path / "cache").folder == before
        (folder / "net.pt").write_bytes(b"other weights")
        taken = take_archive(folder, tmp_path / "cache")
        assert dict(files_of(taken.folder))["net.pt"].read_bytes() == b"other weights"

    def test_files_of_old_archives_are_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        old = take_archive(mar(tmp_path), tmp_path / "cache").folder
        monkeypatch.setattr(ready, "_STALE", -1.0)
        mar(tmp_path, {**FILES, "more.txt": b"x"})
        take_archive(tmp_path / "cats.mar", tmp_path / "cache")
        assert not old.exists()

    def test_an_archive_of_kdeploy_gives_its_handler_and_settings(self, tmp_path: Path) -> None:
        settings = json.dumps({"handler": "handler.py:run", "body": "handler"}).encode()
        files = {**FILES, "kdeploy_handler.py": b"", "kdeploy_rows.py": b"", "kdeploy_handler.json": settings}
        taken = take_archive(mar(tmp_path, files, handler="kdeploy_handler.py"), tmp_path / "cache")
        assert (taken.model["handler"], taken.model["body"]) == ("handler.py:run", "handler")
        assert {name for name, _ in files_of(taken.folder)} == set(FILES)


class TestHostile:
    @pytest.mark.parametrize(
        ("name", "what"),
        [
            ("../evil.py", "it leads out of the archive"),
            ("pkg/../../evil.py", "it leads out of the archive"),
            ("/etc/evil.py", "it leads out of the archive"),
            ("pkg\\evil.py", "it contains a backslash"),
            ("pkg//evil.py", "it has an empty part"),
            ("a\x01.py", "it contains a control character"),
            ("x" * 300, "it is too long"),
        ],
    )
    @pytest.mark.parametrize("write", [write_zip, write_tar])
    def test_a_name_that_leads_out_is_refused(self, tmp_path: Path, name: str, what: str, write: Any) -> None:
        path = write(tmp_path / "x.mar", {name: b"", "MAR-INF/MANIFEST.json": manifest()})
        assert what in refusal(path).what
        assert not (tmp_path / "evil.py").exists()

    def test_a_name_used_twice_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "x.mar"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("handler.py", b"1")
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("handler.py", b"2")
        assert "it is there twice" in refusal(path).what
        path = write_tar(tmp_path / "y.mar", {"handler.py": b"", "./handler.py": b""})
        assert "it is there twice" in refusal(path).what

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
    def test_a_link_or_device_in_a_tar_is_refused(self, tmp_path: Path, kind: bytes) -> None:
        path = tmp_path / "x.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            info = tarfile.TarInfo("passwd")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        assert refusal(path).what == "invalid member 'passwd': it is a link or a device"

    def test_a_link_in_a_zip_or_folder_is_refused(self, tmp_path: Path) -> None:
        info = zipfile.ZipInfo("passwd")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        path = tmp_path / "x.mar"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(info, "/etc/passwd")
        assert "it is a link" in refusal(path).what
        folder = write_folder(tmp_path / "made", {"MAR-INF/MANIFEST.json": manifest()})
        (folder / "passwd").symlink_to("/etc/passwd")
        assert "it is a link" in refusal(folder).what

    @pytest.mark.parametrize("write", [write_tar, lambda path, files: write_zip(path, files, deflate=True)])
    def test_a_bomb_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
        monkeypatch.setattr(ready, "_FREE", 1 << 20)
        path = write(tmp_path / "x.mar", {"zeros": bytes(20 << 20), "MAR-INF/MANIFEST.json": manifest()})
        assert "unpack to more than" in refusal(path).what

    def test_members_that_overlap_are_refused(self, tmp_path: Path) -> None:
        path = write_zip(tmp_path / "x.mar", {"a": b"x" * 1000, "b": b"x" * 1000})
        content = bytearray(path.read_bytes())
        second = content.rfind(b"PK\x01\x02")  # let it declare the bytes of many others
        content[second + 20 : second + 24] = (1 << 20).to_bytes(4, "little")
        path.write_bytes(content)
        assert refusal(path).what == "its members overlap"

    def test_many_files_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ready, "FILES_MAX", 4)
        assert "more than 4 files" in refusal(mar(tmp_path)).what

    def test_a_file_that_is_also_a_folder_is_refused(self, tmp_path: Path) -> None:
        path = write_zip(tmp_path / "x.mar", {"a": b"", "a/b": b"", "MAR-INF/MANIFEST.json": manifest()})
        assert "cannot unpack the archive" in refusal(path).what

    def test_an_encrypted_member_is_refused(self, tmp_path: Path) -> None:
        path = write_zip(tmp_path / "x.mar", {"a": b"x"})
        content = bytearray(path.read_bytes())
        content[content.find(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(content)
        assert "it is encrypted" in refusal(path).what

    @pytest.mark.parametrize("at", [0.3, 0.6, 0.95])
    def test_a_damaged_archive_is_refused(self, tmp_path: Path, at: float) -> None:
        whole = {**FILES, "net.pt": bytes(range(256)) * 200, "MAR-INF/MANIFEST.json": manifest()}
        for write in (write_zip, write_tar):
            path = write(tmp_path / write.__name__, whole)
            path.write_bytes(path.read_bytes()[: int(path.stat().st_size * at)])
            assert refusal(path).exit_code == ArchiveError.exit_code

    @pytest.mark.parametrize(
        "described",
        [
            b"not json",
            b"[]",
            b"{}",
            b'{"model": 3}',
            b'{"model": {"modelName": "x"}}',
            b'{"model": {"handler": 3}}',
            b'{"model": {"handler": "handler.py", "serializedFile": "../../etc/passwd"}}',
            b'{"model": {"handler": "handler.py", "modelFile": "/etc/passwd"}}',
            b"\xff\xfe",
            b"[" * 100_000,
        ],
    )
    def test_a_wrong_manifest_is_refused(self, tmp_path: Path, described: bytes) -> None:
        path = write_zip(tmp_path / "x.mar", {**FILES, "MAR-INF/MANIFEST.json": described})
        with pytest.raises(ArchiveError) as caught:
            take_archive(path, tmp_path / "cache")
        assert str(path) in (caught.value.where or "")

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            (b"", "neither a zip nor a .tar.gz"),
            (b"version https://git-lfs.github.com/spec/v1", "neither a zip nor a .tar.gz"),
            (b"PK\x03\x04", "the archive is damaged"),
        ],
    )
    def test_what_is_not_an_archive_is_refused(self, tmp_path: Path, content: bytes, what: str) -> None:
        path = tmp_path / "x.mar"
        path.write_bytes(content)
        assert what in refusal(path).what

    def test_weights_are_not_a_model_archive(self, tmp_path: Path) -> None:
        assert "MANIFEST.json is missing" in refusal(write_zip(tmp_path / "x.mar", {"data.pkl": b""})).what

    def test_a_missing_file_is_not_found(self, tmp_path: Path) -> None:
        assert refusal(tmp_path / "x.mar").what == "file not found"


class TestWorkflow:
    def test_a_workflow_archive_is_refused_with_the_reason(self, tmp_path: Path) -> None:
        described = json.dumps({"workflow": {"workflowName": "dogs"}}).encode()
        for name in ("dogs.war", "dogs.mar"):
            error = refusal(write_zip(tmp_path / name, {"MAR-INF/MANIFEST.json": described}))
            assert error.what == "a workflow archive (.war) joins several models, and kdeploy serves one"
            assert "InferenceGraph" in (error.hint or "")


def test_the_files_that_another_process_unpacked_stay(tmp_path: Path) -> None:
    unpack(mar(tmp_path), tmp_path / "out")
    (tmp_path / "out" / "mark").touch()
    unpack(mar(tmp_path), tmp_path / "out")
    assert (tmp_path / "out" / "mark").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cats.mar", "out"]
