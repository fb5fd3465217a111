"""Reading files that users name, with limits."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deployer.errors import DiskFullError, MachineError, read_fault
from deployer.files import (
    exists,
    expanded,
    home,
    is_file,
    is_folder,
    read_bytes,
    read_text,
    remove_tree,
    walk,
)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: path.write_bytes(b"x" * 101), errno.EFBIG),
        (lambda path: path.symlink_to("/dev/zero"), errno.EFBIG),
        (lambda path: path.symlink_to(path), errno.ELOOP),
        (lambda path: path.mkdir(), errno.EISDIR),
        (lambda path: None, errno.ENOENT),
    ],
)
def test_the_error_for_a_file_that_cannot_be_read(
    make: Callable[[Path], object], what: int, tmp_path: Path
) -> None:
    make(tmp_path / "x")
    with pytest.raises(OSError) as caught:
        read_bytes(tmp_path / "x", 100)
    assert caught.value.errno == what
    assert caught.value.strerror


def test_invalid_names_and_texts(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="NUL byte"):
        read_bytes("a\0b")
    (tmp_path / "x").write_bytes(b"ab\xff")
    with pytest.raises(OSError, match="not UTF-8 at byte 2"):
        read_text(tmp_path / "x")


def test_files_and_pipes_are_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 100)
    assert read_bytes(tmp_path / "x", 100) == b"x" * 100
    os.mkfifo(tmp_path / "pipe")
    assert read_bytes(tmp_path / "pipe") == b""
    reader, writer = os.pipe()
    os.write(writer, "ü".encode())
    os.close(writer)
    assert read_text(f"/dev/fd/{reader}") == "ü"
    os.close(reader)


def test_a_walk_follows_no_link_and_has_no_depth_limit(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/b/file", "a/file", "file"):
        (tmp_path / name).touch()
    (tmp_path / "a" / "up").symlink_to("..")
    found = [os.path.relpath(entry.path, tmp_path) for entry in walk(tmp_path)]
    assert found == ["file", "a/file", "a/up", "a/b/file"]
    assert [entry.name for entry in walk(tmp_path, lambda entry: entry.name != "b")] == ["file", "file", "up"]
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1500):
            Path("d").mkdir()
            os.chdir("d")
        Path("deep").touch()
    finally:
        os.chdir(before)
    try:
        assert "deep" in [entry.name for entry in walk(tmp_path)]
        remove_tree(tmp_path / "d")  # as far as Python can
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_paths_without_permission_do_not_exist(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 300), Path("/" + "y" * 5000), tmp_path / "none"):
        assert not any(look(path) for look in (is_file, is_folder, exists))
    assert is_folder(tmp_path)
    assert exists(tmp_path)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    assert home({"HOME": "/me"}) == Path("/me")
    assert expanded("~/a", {"HOME": "/me"}) == Path("/me/a")
    assert expanded("~other/a", {"HOME": "/me"}) == Path("~other/a")

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    assert home({}) == Path("/")


@pytest.mark.parametrize(
    ("error", "kind", "what", "where"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a"), MachineError, "Permission denied", "/a"),
        (OSError(errno.ENOSPC, "No space left on device", b"/a"), DiskFullError, "No space left", "/a"),
        (OSError("odd"), MachineError, "odd", None),
        (TimeoutError(), MachineError, "TimeoutError", None),
        (MemoryError(), MachineError, "out of memory", None),
        (RecursionError("x"), MachineError, "nested too deeply", None),
        (
            UnicodeEncodeError("utf-8", "\udcff", 0, 1, "not allowed"),
            MachineError,
            "not allowed",
            None,
        ),
    ],
)
def test_an_error_of_the_machine_is_not_reported_as_a_bug(
    error: OSError, kind: type, what: str, where: str | None
) -> None:
    read = read_fault(error)
    assert type(read) is kind
    assert what in read.what
    assert read.where == where
