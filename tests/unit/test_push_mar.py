"""`kdeploy push --mar` releases a finished model archive as it is, with the adapter in front."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from deployer.cli.main import main
from deployer.workspace import open_workspace
from tests.unit.archive.test_ready import FILES, mar, write_folder

TOML = '[model]\nname = "cats"\nversion = "2.1"\nhandler = "gone.py"\n[serving]\nbatch-size = 8\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def stored(folder: Path, name: str = "cats") -> tuple[dict[str, Any], zipfile.ZipFile]:
    """Return the only stored release, and its archive."""
    (release,) = (folder / "model-store" / name).iterdir()
    return json.loads((release / "release.json").read_bytes()), zipfile.ZipFile(
        release / "model-store" / f"{name}.mar"
    )


def test_an_archive_needs_no_kdeploy_toml(folder: Path) -> None:
    mar(folder, serializedFile="net.pt")
    assert run("push", "--mar", "cats.mar") == 0
    release, archive = stored(folder)
    assert (release["name"], release["version"]) == ("cats", "2.1")
    assert FILES.keys() < set(archive.namelist())
    assert {name: archive.read(name) for name in FILES} == FILES
    manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
    assert manifest["team"] == "vision"  # a key that only the archive knows
    assert manifest["model"]["handler"] == "kdeploy_handler.py"
    assert manifest["model"]["serializedFile"] == "net.pt"
    assert json.loads(archive.read("kdeploy_handler.json"))["handler"] == "handler.py"


def test_the_same_archive_is_the_same_release(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mar(folder)
    for _ in range(2):
        assert run("push", "--mar", "cats.mar") == 0
    first, second = capsys.readouterr().out.split()
    assert first == second
    stored(folder)


def test_the_settings_of_a_kdeploy_toml_apply(folder: Path) -> None:
    (folder / "kdeploy.toml").write_text(TOML)
    mar(folder)
    assert run("push", "--mar", "cats.mar", "--strict") == 0
    release, archive = stored(folder)
    assert release["serving"]["batch-size"] == 8
    assert "gone.py" not in archive.namelist()


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (TOML.replace("cats", "dogs"), "model.name: dogs replaces cats of cats.mar"),
        (TOML.replace("2.1", "3"), "model.version: 3 replaces 2.1 of cats.mar"),
    ],
)
def test_another_name_or_version_is_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, warning: str
) -> None:
    (folder / "kdeploy.toml").write_text(text)
    mar(folder)
    assert run("push", "--mar", "cats.mar", "--strict") != 0
    assert warning in capsys.readouterr().err


def test_an_archive_without_a_name_needs_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mar(folder, modelName=None)
    assert run("push", "--mar", "cats.mar") != 0
    assert "model.name is not set" in capsys.readouterr().err
    assert run("push", "--mar", "cats.mar", "--set", "model.name=cats") == 0


def test_a_name_that_no_service_can_have_is_changed_for_the_service(folder: Path) -> None:
    path = mar(folder, modelName="Cat_net")
    with open_workspace(folder=folder, mar=path) as work:
        assert work.reference().name == "cat-net"
    assert run("push", "--mar", "cats.mar") == 0
    assert stored(folder, "Cat_net")[0]["name"] == "Cat_net"


def test_a_name_without_letters_needs_a_service_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mar(folder, modelName="2024_1")
    assert run("push", "--mar", "cats.mar") != 0
    assert "Set service.name" in capsys.readouterr().err
    assert run("push", "--mar", "cats.mar", "--service", "cat-net") == 0


def test_a_version_can_be_a_number(folder: Path) -> None:
    mar(folder, modelVersion=1.5)
    assert run("push", "--mar", "cats.mar") == 0
    assert stored(folder)[0]["version"] == "1.5"


def test_secrets_in_the_archive_are_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mar(folder, {**FILES, "conf/.env": b"TOKEN=1"})
    assert run("push", "--mar", "cats.mar") == 0
    assert "possible secrets, which everyone who reads the release can read: conf/.env" in (
        capsys.readouterr().err
    )


def test_settings_of_its_model_config_apply(folder: Path) -> None:
    mar(folder, {**FILES, "model-config.yaml": b"batchSize: 4\n"}, configFile="model-config.yaml")
    assert run("push", "--mar", "cats.mar") == 0
    assert stored(folder)[0]["serving"]["batch-size"] == 4


def test_weights_as_the_model_file_work(folder: Path) -> None:
    mar(folder, modelFile="net.pt")
    assert run("push", "--mar", "cats.mar") == 0
    manifest = json.loads(stored(folder)[1].read("MAR-INF/MANIFEST.json"))
    assert manifest["model"]["modelFile"] == "net.pt"


def test_requirements_are_installed_in_a_virtual_environment(folder: Path) -> None:
    mar(folder, {**FILES, "requirements.txt": b"tiny==1\n"}, requirementsFile="requirements.txt")
    assert run("push", "--mar", "cats.mar") == 0
    release, archive = stored(folder)
    assert archive.read("model-config.yaml") == b"useVenv: true\n"
    assert "install_py_dep_per_model=true" in release["config_properties"]


def test_a_release_of_kdeploy_is_the_same_release_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mar(folder)
    assert run("push", "--mar", "cats.mar") == 0
    release, archive = stored(folder)
    assert run("push", "--mar", str(archive.filename)) == 0
    assert capsys.readouterr().out.split() == [release["id"], release["id"]]


def test_the_fault_of_a_file_names_the_archive(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mar(folder, serializedFile="gone.pt")
    assert run("push", "--mar", "cats.mar") != 0
    assert "where: cats.mar: model.serialized-file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('handler = "cats.mar"', "cats.mar is a model archive"),
        ('handler = "base_handler"\nserialized-file = "cats.mar"', "cats.mar is a model archive"),
        ('handler = "base_handler"\nserialized-file = "weights.pt"', "weights.pt is a model archive"),
        ('handler = "dogs.war"', "dogs.war is a model archive"),
        ('archive = "cats.mar"', "unknown key model.archive"),
    ],
)
def test_an_archive_in_the_wrong_place_names_the_command(
    folder: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    mar(folder)
    (folder / "weights.pt").write_bytes((folder / "cats.mar").read_bytes())
    (folder / "kdeploy.toml").write_text(f'[model]\nname = "cats"\nversion = "2.1"\n{line}\n')
    assert run("push") != 0
    error = capsys.readouterr().err
    assert message in error
    assert "kdeploy push --mar" in error


def test_a_model_table_of_another_kind_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "kdeploy.toml").write_text("model = 3\n")
    mar(folder)
    assert run("push", "--mar", "cats.mar") != 0
    assert "expected a table" in capsys.readouterr().err


def test_an_archive_and_a_release_exclude_each_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mar(folder)
    assert run("rollout", "--mar", "cats.mar", "--release", "2.1-0123456789ab") == 3
    assert "--release and --mar cannot be combined" in capsys.readouterr().err


def test_a_program_releases_an_archive(folder: Path) -> None:
    mar(folder)
    with open_workspace(mar="cats.mar") as workspace:
        release = workspace.push()
    assert stored(folder)[0]["id"] == release.id


def test_a_folder_of_an_unpacked_archive_can_be_released(folder: Path) -> None:
    path = mar(folder)
    with zipfile.ZipFile(path) as archive:
        write_folder(folder / "made", {name: archive.read(name) for name in archive.namelist()})
    assert run("push", "--mar", "made") == 0
    stored(folder)
