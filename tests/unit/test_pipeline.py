"""The one path, on a real store and a target that nothing was rolled out to yet."""

from __future__ import annotations

from pathlib import Path

import pytest
from deployer.pipeline import Pipeline, export_archive

from deployer.config import load_settings
from deployer.errors import ArchiveError, ConfigError, KdeployError, NotFoundError
from deployer.events import Archiving, Event, Pushed, Warned
from deployer.store import open_store
from deployer.targets.local import OneNode

HANDLER = "def handle(data, context):\n    return [1] * len(data or [])\n"


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[Event] = []
        (folder / "handler.py").write_text(HANDLER)
        (folder / "weights.pt").write_bytes(b"w" * 100_000)

    def pipeline(self, *, strict: bool = False, **flags: str) -> Pipeline:
        settings = load_settings(
            None,
            environment={},
            flags={
                "model.name": "digits",
                "model.version": "1.0",
                "model.handler": "handler.py",
                "model.serialized-file": "weights.pt",
                **{key.replace("__", ".").replace("_", "-"): value for key, value in flags.items()},
            },
            folder=self.folder,
        )
        target = OneNode(
            state=self.folder / ".kdeploy", namespace="default", ingress_host="127.0.0.1", ingress_port=0
        )
        self.events.clear()
        store = open_store(settings.config.store, self.folder)
        return Pipeline(settings, store, target, self.events.append, strict=strict)

    def kinds(self) -> list[type]:
        return [type(event) for event in self.events]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_unchanged_inputs_are_neither_read_nor_written_again(project: Project) -> None:
    first = project.pipeline().push()
    assert Archiving in project.kinds()
    again = project.pipeline().push()
    assert again == first
    assert project.kinds() == [Pushed]
    (pushed,) = project.events
    assert isinstance(pushed, Pushed)
    assert pushed.bytes_written == 0


@pytest.mark.parametrize(
    ("line", "flags", "where"),
    [
        ('handler = "none.py"', {}, "other.toml: model.handler"),
        ('handler = "handler.py"', {"model.model-file": "x"}, "--set model.model-file: model.model-file"),
        ('handler = "handler.py"\n[torchserve]\nmodel_store = "x"', {}, "other.toml: torchserve.model_store"),
    ],
)
def test_an_error_is_where_the_value_was_set(
    line: str, flags: dict[str, str], where: str, project: Project, tmp_path: Path
) -> None:
    path = tmp_path / "other.toml"
    path.write_text(f'[model]\nname = "digits"\nversion = "1"\n{line}\n')
    settings = load_settings(path, environment={}, flags=flags, folder=tmp_path)
    target = project.pipeline().target
    pipe = Pipeline(settings, open_store(settings.config.store, tmp_path), target, project.events.append)
    with pytest.raises(KdeployError) as caught:
        pipe.push()
    assert (caught.value.where or "").endswith(where)


def test_without_the_remembered_digests_it_is_found_out_in_one_pass(project: Project) -> None:
    (project.folder / "weights.pt").write_bytes(b"w" * 300_000)  # smaller ones are not remembered
    first = project.pipeline().push()
    (project.folder / ".kdeploy" / "digests.json").unlink(missing_ok=True)
    assert project.pipeline().push() == first
    assert project.kinds()[-1] is Pushed
    assert project.events[-1] == Pushed(
        release=first.id, uri=project.pipeline().store.uri(first), bytes_written=0
    )


def test_other_bytes_are_another_release(project: Project) -> None:
    first = project.pipeline().push()
    (project.folder / "weights.pt").write_bytes(b"v" * 100_000)
    assert project.pipeline().push().id != first.id


def test_plan_writes_nothing_and_tells_what_push_will_make(project: Project) -> None:
    before = {path for path in project.folder.rglob("*") if ".kdeploy" not in path.parts}
    plan = project.pipeline().plan(100)
    assert (plan.stored, plan.serving) == (False, None)
    assert {path for path in project.folder.rglob("*") if ".kdeploy" not in path.parts} == before
    assert project.pipeline().push() == plan.release
    assert project.pipeline().plan(100).stored


def test_a_release_that_is_not_there(project: Project) -> None:
    with pytest.raises(NotFoundError, match=r"no release 1\.0-0123456789ab of digits"):
        project.pipeline().find("1.0-0123456789ab")
    with pytest.raises(NotFoundError, match="no release id"):
        project.pipeline().rollout("../..", timeout=None)


def test_a_service_that_is_not_there(project: Project) -> None:
    with pytest.raises(NotFoundError, match="service default/digits not found"):
        project.pipeline().status()


def test_a_store_takes_only_what_torchserve_loads(project: Project) -> None:
    with pytest.raises(ConfigError, match=r"takes a \.mar"):
        project.pipeline(model__archive_format="tgz").push()


def test_warnings_are_told_and_strict_makes_them_errors(project: Project) -> None:
    (project.folder / "handler.py").write_text("import no_such_module\n" + HANDLER)
    project.pipeline().push()
    assert any(isinstance(event, Warned) and "no_such_module" in event.message for event in project.events)
    with pytest.raises(ArchiveError, match="strict"):
        project.pipeline(strict=True).push()


@pytest.mark.parametrize("archive_format", ["zip-store", "default", "tgz", "no-archive"])
def test_an_archive_is_written_anywhere_and_replaced_only_by_force(
    project: Project, archive_format: str, tmp_path: Path
) -> None:
    settings = project.pipeline(model__archive_format=archive_format).settings
    folder = tmp_path / "out"
    folder.mkdir()
    path = export_archive(settings, folder, project.events.append, force=False, strict=False)
    assert path.exists()
    with pytest.raises(ArchiveError, match="there already") as caught:
        export_archive(settings, folder, project.events.append, force=False, strict=False)
    assert "--force" in (caught.value.hint or "")
    if archive_format == "no-archive":  # a folder that kdeploy may not have made
        with pytest.raises(ArchiveError, match="does not replace folders"):
            export_archive(settings, folder, project.events.append, force=True, strict=False)
    else:
        assert export_archive(settings, folder, project.events.append, force=True, strict=False) == path
