"""A workspace finds its project and its target as the commands do, and opens nothing before it is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.errors import ConfigError
from deployer.observed import Reference
from deployer.workspace import open_workspace

TWO_TARGETS = """
model = { name = "digits", version = "1.0", handler = "handler.py" }
targets.laptop = { kind = "local", namespace = "here" }
targets.cluster = { kind = "kserve", namespace = "team" }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("KDEPLOY_TARGET", raising=False)
    (tmp_path / "kdeploy.toml").write_text(TWO_TARGETS)
    (tmp_path / "inner").mkdir()
    return tmp_path


def test_the_project_is_found_in_a_folder_above(folder: Path) -> None:
    with open_workspace(folder / "inner", target="laptop") as workspace:
        assert workspace.settings.root == folder.resolve()
        assert workspace.reference() == Reference("here", "digits")
        assert workspace.reference("other") == Reference("here", "other")
        assert workspace.rollouts.target is workspace.target


def test_a_folder_without_a_project_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        open_workspace(tmp_path)


def test_settings_override_the_file(folder: Path) -> None:
    with open_workspace(folder, settings={"model.version": "2.0"}) as workspace:
        assert workspace.settings.config.model.version == "2.0"


def test_the_target_must_be_named_if_there_are_several(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_workspace(folder) as workspace:
        assert workspace.store.releases() == []  # needs no target
        with pytest.raises(ConfigError, match="several targets: laptop, cluster"):
            _ = workspace.target
    monkeypatch.setenv("KDEPLOY_TARGET", "laptop")
    with open_workspace(folder) as workspace:
        assert workspace.chosen[0] == "laptop"


@pytest.mark.parametrize(
    ("named", "variable", "where"), [("x", "y", "--target"), (None, "y", "KDEPLOY_TARGET")]
)
def test_an_unknown_target_is_an_error_that_says_where_it_was_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, named: str | None, variable: str, where: str
) -> None:
    monkeypatch.setenv("KDEPLOY_TARGET", variable)
    with open_workspace(folder, target=named) as workspace, pytest.raises(ConfigError) as caught:
        _ = workspace.target
    assert caught.value.where == where
    assert caught.value.hint == "Use one of: laptop, cluster."


def test_the_default_target_is_used_if_no_other_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "kdeploy.toml").write_text('default-target = "cluster"\n' + TWO_TARGETS)
    with open_workspace(folder) as workspace:
        assert workspace.chosen[0] == "cluster"
    monkeypatch.setenv("KDEPLOY_TARGET", "laptop")
    with open_workspace(folder) as workspace:
        assert workspace.chosen[0] == "laptop"
    with open_workspace(folder, target="cluster") as workspace:
        assert workspace.chosen[0] == "cluster"


def test_a_push_of_one_of_several_services_needs_no_target(folder: Path) -> None:
    (folder / "handler.py").write_text("def handle(data, context):\n    return data\n")
    services = "[services.a]\n[services.b.serving]\nbatch-size = 8\n"
    (folder / "kdeploy.toml").write_text(TWO_TARGETS + services)
    pushed = set()
    for service in ("a", "b"):
        with open_workspace(folder, service=service) as workspace:
            release = workspace.push()
            pushed.add(release.id)
            assert workspace.store.find("digits", release.id) == release
    assert len(pushed) == 2
    with open_workspace(folder) as workspace, pytest.raises(ConfigError, match="several services: a, b"):
        workspace.push()


def test_only_a_local_target_has_a_node(folder: Path) -> None:
    with (
        open_workspace(folder, target="cluster") as workspace,
        pytest.raises(ConfigError, match="needs a local target"),
    ):
        _ = workspace.node
