"""`kdeploy copy`: a release in another model store, as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.cli.main import main

CONFIG = '[model]\nname = "demo"\nversion = "1.0"\nhandler = "handler.py"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "kdeploy.toml").write_text(CONFIG)
    (tmp_path / "handler.py").write_text("def handle(data, context):\n    return data\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def release(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    code, out, _ = run(capsys, "push")
    assert code == 0
    return out.strip()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def content(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and ".staging" not in path.parts
    }


def test_a_copy_has_the_same_id_and_the_same_bytes(
    folder: Path, release: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "copy", release, "--to", "other")
    assert (code, out) == (0, f"{release}\n"), err
    assert f"copied release {release}: " in err
    assert content(folder / "other") == content(folder / "model-store")
    code, out, err = run(capsys, "copy", release, "--to", "other")
    assert (code, out) == (0, f"{release}\n"), err
    assert f"unchanged: release {release} is in file://" in err
    # Without the project's files, and from the copy.
    (folder / "handler.py").unlink()
    assert run(capsys, "copy", release, "--store", "other", "--to", "third")[0] == 0
    assert content(folder / "third") == content(folder / "other")


def test_nothing_is_overwritten(folder: Path, release: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "copy", release, "--to", "other")
    (archive,) = (folder / "other").rglob("demo.mar")
    archive.write_bytes(damaged := archive.read_bytes() + b"x")
    code, _, err = run(capsys, "copy", release, "--to", "other")
    assert code == 6
    assert "demo.mar" in err
    assert archive.read_bytes() == damaged


def test_a_damaged_release_is_not_copied(
    folder: Path, release: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (archive,) = (folder / "model-store").rglob("demo.mar")
    archive.write_bytes(archive.read_bytes().replace(b"return data", b"return None"))
    code, out, err = run(capsys, "copy", release, "--to", "other")
    assert (code, out) == (6, "")
    assert "demo.mar" in err
    assert content(folder / "other") == {}


def test_an_unknown_release_and_an_invalid_store(release: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "copy", "1.0-0123456789ab", "--to", "other")[0] == 11
    code, _, err = run(capsys, "copy", release, "--to", "s3://id:planted@bucket/models")
    assert code == 3
    assert "planted" not in err
    assert run(capsys, "copy", release)[0] == 2
