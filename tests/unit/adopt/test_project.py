"""`kdeploy init --from-mar` writes a project that serves what the archive served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployer.adopt.project import read_yaml_service
from deployer.cli.main import main
from deployer.errors import ConfigError
from tests.unit.adopt.test_service import service
from tests.unit.archive.test_ready import FILES, mar, write_zip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "given").mkdir()
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def config(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run("config", "-o", "json") == 0
    return {key: one["value"] for key, one in json.loads(capsys.readouterr().out).items()}


def test_an_archive_becomes_a_project(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {**FILES, "labels.json": b"[]", "requirements.txt": b"tiny==1\n"}
    mar(folder.parent / "given", files, serializedFile="net.pt", requirementsFile="requirements.txt")
    assert run("init", "--from-mar", "../given/cats.mar") == 0
    shown = capsys.readouterr().err
    assert "MANIFEST.json: team" in shown
    assert "next: run `kdeploy rollout`" in shown
    assert {path.relative_to(folder / "model").as_posix() for path in (folder / "model").rglob("*.*")} == set(
        files
    )
    found = config(capsys)
    assert {key: value for key, value in found.items() if key.startswith("model.") and value} == {
        "model.name": "cats",
        "model.version": "2.1",
        "model.handler": "model/handler.py",
        "model.serialized-file": "model/net.pt",
        "model.requirements-file": "model/requirements.txt",
        "model.extra-files": ["model"],
        "model.runtime": "python",
        "model.archive-format": "zip-store",
        "model.python": "3.9",
        "model.body": "adapter",
        "model.v2-rows": "tensor",
    }
    assert run("push") == 0
    assert (folder / ".gitignore").exists()
    assert not (folder / ".kdeploy" / "model").exists()


def test_a_stock_handler_and_no_other_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mar(folder.parent, {"net.pt": b"w"}, handler="image_classifier", serializedFile="net.pt")
    assert run("init", "--from-mar", "../cats.mar", "--name", "dogs") == 0
    found = config(capsys)
    assert (found["model.handler"], found["model.extra-files"]) == ("image_classifier", [])
    assert found["model.name"] == "dogs"


@pytest.mark.parametrize("handler", ["handler", "handler.py:handle", "handler.py"])
def test_a_handler_of_any_form_is_found(
    folder: Path, capsys: pytest.CaptureFixture[str], handler: str
) -> None:
    mar(folder.parent, handler=handler)
    assert run("init", "--from-mar", "../cats.mar") == 0
    assert config(capsys)["model.handler"] == f"model/{handler}"
    assert run("push") == 0


def test_an_archive_of_kdeploy_is_unpacked_without_the_adapter(folder: Path) -> None:
    settings = b'{"handler": "handler.py", "v2_rows": "first-dimension"}'
    files = {**FILES, "kdeploy_handler.py": b"", "kdeploy_handler.json": settings}
    mar(folder.parent, files, handler="kdeploy_handler.py")
    assert run("init", "--from-mar", "../cats.mar") == 0
    assert not list((folder / "model").glob("kdeploy*"))
    assert 'v2-rows = "first-dimension"' in (folder / "kdeploy.toml").read_text()


def test_secrets_are_unpacked_but_not_packed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mar(folder.parent, {**FILES, ".env": b"TOKEN=1"})
    assert run("init", "--from-mar", "../cats.mar") == 0
    assert "file .env" in capsys.readouterr().err
    assert (folder / "model" / ".env").exists()


def test_the_settings_of_torchserve_and_of_the_service(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mar(folder.parent)
    snapshot = {"models": {"cats": {"1.0": {"marName": "cats.mar", "batchSize": 4}}}}
    (folder / "config.properties").write_text(f"model_snapshot={json.dumps(snapshot)}\njob_queue_size=9\n")
    live = service({"storageUri": "gs://models/x"}, nodeSelector={"pool": "gpu"})
    live["metadata"]["name"] = "cats-live"
    (folder / "isvc.yaml").write_text(yaml.safe_dump_all([{"kind": "Namespace"}, None, live]))
    options = ("--properties", "config.properties", "--isvc", "isvc.yaml")
    assert run("init", "--from-mar", "../cats.mar", *options) == 0
    found = config(capsys)
    assert (found["service.name"], found["serving.batch-size"]) == ("cats-live", 4)
    assert (found["torchserve.job_queue_size"], found["store.uri"]) == (9, "gs://models/kdeploy")
    assert found["serving.overlay.spec.predictor.nodeSelector.pool"] == "gpu"
    assert found["targets.local.namespace"] == found["targets.cluster.namespace"] == "vision"
    assert found["default-target"] == "cluster"


def test_a_service_with_the_name_of_the_model_needs_no_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mar(folder.parent)
    listed = {"kind": "List", "items": [service()]}  # as `kubectl get inferenceservices -o yaml` prints it
    (folder / "isvc.yaml").write_text(yaml.safe_dump(listed))
    assert run("init", "--from-mar", "../cats.mar", "--isvc", "isvc.yaml") == 0
    assert "[service]" not in (folder / "kdeploy.toml").read_text()


@pytest.mark.parametrize(("model", "service"), [("Text_Net", "text-net"), ("resnet.v2", "resnet-v2")])
def test_a_model_whose_name_no_service_can_have_gets_a_service_name(
    folder: Path, model: str, service: str
) -> None:
    mar(folder.parent, modelName=model)
    assert run("init", "--from-mar", "../cats.mar") == 0
    assert f'[service]\nname = "{service}"\n' in (folder / "kdeploy.toml").read_text()
    assert run("push") == 0


def test_local_commands_take_the_only_local_target(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mar(folder.parent)
    (folder / "isvc.yaml").write_text(yaml.safe_dump(service()))
    assert run("init", "--from-mar", "../cats.mar", "--isvc", "isvc.yaml") == 0
    assert run("local", "stop") == 0  # default-target is the cluster
    assert "not running" in capsys.readouterr().err
    assert run("local", "stop", "--target", "cluster") != 0


def test_a_value_that_kdeploy_refuses_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mar(folder.parent)
    document = service({"resources": {"limits": {"memory": "much"}}})
    (folder / "isvc.yaml").write_text(yaml.safe_dump(document))
    assert run("init", "--from-mar", "../cats.mar", "--isvc", "isvc.yaml") == 0
    assert "kdeploy.toml needs a correction: invalid value (kdeploy.toml: serving.memory)" in (
        capsys.readouterr().err
    )


class TestRefused:
    def test_a_project_is_not_overwritten(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        mar(folder.parent)
        (folder / "kdeploy.toml").write_text("mine")
        assert run("init", "--from-mar", "../cats.mar") != 0
        assert "already exists" in capsys.readouterr().err
        assert (folder / "kdeploy.toml").read_text() == "mine"
        assert [path.name for path in folder.iterdir()] == ["kdeploy.toml"]
        assert run("init", "--from-mar", "../cats.mar", "--force") == 0

    def test_a_folder_of_the_user_is_never_replaced(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        mar(folder.parent)
        (folder / "model").mkdir()
        (folder / "model" / "mine.pt").write_text("")
        assert run("init", "--from-mar", "../cats.mar", "--force") != 0
        assert "folder already exists" in capsys.readouterr().err
        assert (folder / "model" / "mine.pt").exists()
        assert not (folder / "kdeploy.toml").exists()

    def test_a_wrong_archive_writes_nothing(self, folder: Path) -> None:
        write_zip(folder.parent / "cats.mar", {"../evil": b""})
        assert run("init", "--from-mar", "../cats.mar") != 0
        assert list(folder.iterdir()) == []
        assert run("init", "new", "--from-mar", "../cats.mar") != 0
        assert list(folder.iterdir()) == []

    @pytest.mark.parametrize("option", ["--properties", "--isvc"])
    def test_the_other_options_need_an_archive(
        self, folder: Path, capsys: pytest.CaptureFixture[str], option: str
    ) -> None:
        (folder / "x").write_text("")
        assert run("init", option, "x") != 0
        assert f"{option} needs a model archive" in capsys.readouterr().err

    def test_a_missing_file_is_named(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        mar(folder.parent)
        for option in ("--properties", "--isvc"):
            assert run("init", "--from-mar", "../cats.mar", option, "gone") != 0
            assert "cannot read gone: No such file" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("a: [", "invalid YAML"),
            ("kind: Deployment", "0 InferenceServices, expected one"),
            ("{kind: InferenceService}\n---\n{kind: InferenceService}", "2 InferenceServices"),
            ("- 3", "0 InferenceServices"),
            (
                "kind: List\nitems: [3, {kind: InferenceService}, {kind: InferenceService}]",
                "2 InferenceServices",
            ),
            ("kind: List\nitems: 3", "0 InferenceServices"),
        ],
    )
    def test_a_file_without_one_service(self, tmp_path: Path, text: str, what: str) -> None:
        (tmp_path / "isvc.yaml").write_text(text)
        with pytest.raises(ConfigError, match=what):
            read_yaml_service(tmp_path / "isvc.yaml")

    def test_a_folder_that_cannot_be_written(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        mar(folder.parent)
        (folder / "file").write_text("")
        assert run("init", "file/inside", "--from-mar", "../cats.mar") != 0
        assert "cannot write the project" in capsys.readouterr().err
