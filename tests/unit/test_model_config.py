"""Settings of TorchServe's model-config.yaml are defaults of `[serving]`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployer.config import Settings, load_settings
from deployer.errors import ArchiveError, ConfigError
from deployer.events import Warned
from deployer.properties import decode_properties, render_properties
from tests.unit.projects import Folder

YAML = """
minWorkers: 2
maxWorkers: 3
batchSize: 8
maxBatchDelay: 800
responseTimeout: 7
startupTimeout: 600
"""
KEYS = {
    "min-workers": 2,
    "max-workers": 3,
    "batch-size": 8,
    "max-batch-delay": 800,
    "response-timeout": 7,
    "startup-timeout": 600,
}


def load(folder: Path, yaml: str, serving: str = "", **more: dict[str, str]) -> Settings:
    (folder / "conf").mkdir(exist_ok=True)
    (folder / "conf" / "m.yaml").write_text(yaml)
    toml = '[model]\nname = "m"\nversion = "1"\nhandler = "h.py"\nconfig-file = "conf/m.yaml"\n'
    (folder / "kdeploy.toml").write_text(f"{toml}[serving]\n{serving}\n")
    given = {"environment": {}, "flags": {}, **more}
    return load_settings(folder / "kdeploy.toml", folder=folder, **given)


def serving(settings: Settings) -> dict[str, tuple[object, str]]:
    rows = settings.values()
    return {key.removeprefix("serving."): (value, source) for key, value, source in rows}


def test_each_setting_is_a_default_with_its_source(tmp_path):
    settings = load(tmp_path, YAML)
    shown = serving(settings)
    for key, value in KEYS.items():
        assert shown[key] == (value, str(tmp_path / "conf" / "m.yaml"))
    assert settings.warnings == ()
    properties = decode_properties(render_properties(settings.config, requirements=False))
    snapshot = json.loads(properties["model_snapshot"])["models"]["m"]["1"]
    assert {name: snapshot[name] for name in ("batchSize", "maxBatchDelay", "startupTimeout")} == {
        "batchSize": 8,
        "maxBatchDelay": 800,
        "startupTimeout": 600,
    }


def test_kdeploy_toml_variables_and_flags_override_the_file(tmp_path):
    settings = load(
        tmp_path,
        YAML,
        "response-timeout = 4\nmax-batch-delay = 800",
        environment={"KDEPLOY_SERVING_BATCH_SIZE": "9"},
        flags={"serving.min-workers": "3"},
    )
    shown = serving(settings)
    toml = str(tmp_path / "kdeploy.toml")
    assert shown["response-timeout"] == (4, toml)
    assert shown["batch-size"] == (9, "KDEPLOY_SERVING_BATCH_SIZE")
    assert shown["min-workers"] == (3, "--set serving.min-workers")
    assert shown["max-workers"] == (3, str(tmp_path / "conf" / "m.yaml"))
    assert settings.warnings == (
        "--set serving.min-workers: 3 overrides minWorkers: 2 in conf/m.yaml",
        "KDEPLOY_SERVING_BATCH_SIZE: serving.batch-size: 9 overrides batchSize: 8 in conf/m.yaml",
        f"{toml}: serving.response-timeout: 4 overrides responseTimeout: 7 in conf/m.yaml",
    )


def test_a_flag_can_name_the_file(tmp_path):
    (tmp_path / "m.yaml").write_text("batchSize: 8")
    flags = {"model.name": "m", "model.version": "1", "model.handler": "h", "model.config-file": "m.yaml"}
    settings = load_settings(None, environment={}, flags=flags, folder=tmp_path)
    assert settings.config.serving.batch_size == 8


def test_min_workers_raises_max_workers(tmp_path):
    assert load(tmp_path, "minWorkers: 4").config.serving.max_workers == 4
    assert load(tmp_path, "minWorkers: 4", "max-workers = 6").config.serving.max_workers == 6
    with pytest.raises(ConfigError, match="more than max-workers") as caught:
        load(tmp_path, "minWorkers: 4", "max-workers = 2")
    assert caught.value.where == f"{tmp_path / 'conf' / 'm.yaml'}: serving.min-workers"


def test_no_delay(tmp_path):
    assert load(tmp_path, "maxBatchDelay: 0").config.serving.max_batch_delay == 0


@pytest.mark.parametrize(
    ("yaml", "where"),
    [
        ("batchSize: '8'", "batchSize"),
        ("batchSize: 8.0", "batchSize"),
        ("maxWorkers: true", "maxWorkers"),
        ("minWorkers: 0", "minWorkers"),
        ("maxBatchDelay: -1", "maxBatchDelay"),
        ("responseTimeout: [7]", "responseTimeout"),
    ],
)
def test_a_value_that_torchserve_ignores_is_an_error(tmp_path, yaml, where):
    with pytest.raises(ConfigError, match="whole number") as caught:
        load(tmp_path, yaml)
    assert caught.value.where == f"conf/m.yaml: {where}"


@pytest.mark.parametrize("yaml", ["", "- a", "a: [", "batchSize:", "handler: {batchSize: 8}", '!!int ""'])
def test_a_file_without_settings_changes_nothing(tmp_path, yaml):
    settings = load(tmp_path, yaml)
    assert settings.config.serving.batch_size == 1
    assert serving(settings)["batch-size"][1] == "default"


def test_a_missing_file_is_reported_by_the_archive_only(tmp_path):
    folder = Folder(tmp_path)
    project = folder.project(model__config_file="gone.yaml")
    with pytest.raises(ArchiveError, match=r"gone\.yaml not found"):
        project.plan()


@pytest.mark.parametrize(
    ("yaml", "gpus", "warning"),
    [
        ("deviceType: gpu", 0, "deviceType: gpu, because serving.gpu is 0"),
        ("deviceType: GPU", 0, "deviceType: gpu, because serving.gpu is 0"),
        ("deviceType: gpu", 1, None),
        ("deviceType: cpu", 0, None),
        ("deviceIds: [0, 2]", 2, "deviceIds: [0, 2], because serving.gpu is 2"),
        ("deviceIds: [0, 1]", 2, None),
        ("deviceIds: 1", 0, None),
    ],
)
def test_devices_that_the_release_does_not_have(tmp_path, yaml, gpus, warning):
    warnings = load(tmp_path, yaml, f"gpu = {gpus}").warnings
    assert [text.partition("TorchServe ignores ")[2] for text in warnings] == ([warning] if warning else [])


def test_the_release_depends_on_the_settings_of_the_file(tmp_path):
    folder = Folder(tmp_path)
    ids = set()
    for size in (2, 3):
        (tmp_path / "m.yaml").write_text(f"batchSize: {size}")
        release = folder.project(model__config_file="m.yaml").plan()
        assert release.serving.batch_size == size
        ids.add(release.id)
    assert len(ids) == 2


def test_an_override_is_a_warning_and_an_error_with_strict(tmp_path):
    folder = Folder(tmp_path)
    (tmp_path / "m.yaml").write_text("batchSize: 2")
    flags = {"model__config_file": "m.yaml", "serving__batch_size": "4"}
    folder.project(**flags).plan()
    assert folder.events == [Warned("--set serving.batch-size: 4 overrides batchSize: 2 in m.yaml")]
    with pytest.raises(ArchiveError, match="--strict"):
        folder.project(strict=True, **flags).plan()


def test_serving_that_is_not_a_table(tmp_path):
    (tmp_path / "kdeploy.toml").write_text(
        'serving = 3\n[model]\nname = "m"\nversion = "1"\nhandler = "h"\nconfig-file = "m.yaml"\n'
    )
    with pytest.raises(ConfigError):
        load_settings(tmp_path / "kdeploy.toml", environment={}, flags={}, folder=tmp_path)
    (tmp_path / "kdeploy.toml").write_text("model = 3")
    with pytest.raises(ConfigError):
        load_settings(tmp_path / "kdeploy.toml", environment={}, flags={}, folder=tmp_path)


@pytest.mark.parametrize(("gpus", "warned"), [(1, True), (2, False), (0, False)])
def test_more_processes_than_gpus(tmp_path, gpus, warned):
    yaml = "parallelType: tp\ntorchrun: {nproc-per-node: 2}\n"
    warnings = load(tmp_path, yaml, f"gpu = {gpus}").warnings
    expected = "conf/m.yaml: nproc-per-node is 2, a GPU for each, but serving.gpu is 1"
    assert warnings == ((expected,) if warned else ())
