"""A project on disk and a real model store: plan, push and export."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.config import load_settings
from deployer.errors import ArchiveError, ConfigError, KdeployError, NotFoundError
from deployer.events import Archiving, Pushed, Warned
from deployer.project import DIGESTS, Project
from deployer.store.folder import FolderStore
from tests.unit.projects import HANDLER, Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "model-store")


def test_a_second_push_reads_and_writes_nothing(folder: Folder, store: FolderStore) -> None:
    first = folder.project().push(store)
    assert Archiving in folder.kinds()
    assert folder.project().push(store) == first
    assert folder.events == [Pushed(release=first.id, uri=store.uri(first), bytes_written=0)]


def test_without_stored_digests_a_second_push_stores_nothing(folder: Folder, store: FolderStore) -> None:
    first = folder.project().push(store)
    (folder.folder / DIGESTS).unlink()
    assert folder.project().push(store) == first
    assert Archiving in folder.kinds()
    assert folder.events[-1] == Pushed(release=first.id, uri=store.uri(first), bytes_written=0)


def test_changed_files_are_another_release(folder: Folder, store: FolderStore) -> None:
    first = folder.project().push(store)
    folder.change(b"v")
    assert folder.project().push(store).id != first.id


def test_replicas_do_not_change_the_release(folder: Folder, store: FolderStore) -> None:
    first = folder.project().push(store)
    assert folder.project(scaling__max_replicas="3").plan() == first


def test_a_plan_writes_nothing_and_returns_the_release_of_push(folder: Folder, store: FolderStore) -> None:
    def files() -> set[Path]:
        return {path for path in folder.folder.rglob("*") if ".kdeploy" not in path.parts}

    before, planned = files(), folder.project().plan()
    assert files() == before
    assert store.find("demo", planned.id) is None
    assert folder.project().push(store) == planned


def test_a_plan_and_a_push_write_one_archive(folder: Folder, store: FolderStore) -> None:
    project = folder.project()
    assert project.push(store) == project.plan()
    assert folder.kinds().count(Archiving) == 1


def test_an_open_project_notices_changed_files(folder: Folder, store: FolderStore) -> None:
    project = folder.project()
    first = project.plan()
    folder.change(b"v")
    second = project.plan()
    assert second != first
    assert project.push(store) == second
    folder.change(b"w")
    assert project.push(store) == first


def test_a_release_is_found_by_its_id(folder: Folder, store: FolderStore) -> None:
    project = folder.project()
    release = project.push(store)
    assert project.find(release.id, store) == release
    with pytest.raises(NotFoundError, match=r"release 1\.0-0123456789ab of demo not found"):
        project.find("1.0-0123456789ab", store)
    with pytest.raises(NotFoundError, match="release ID"):
        project.find("../..", store)


def test_a_release_is_found_by_the_start_of_its_id_or_of_its_digits(
    folder: Folder, store: FolderStore
) -> None:
    first = folder.project().push(store)
    folder.change(b"x")
    second = folder.project(model__version="2.0").push(store)
    project, digits = folder.project(), second.id.rpartition("-")[2]
    for short in ("2.", "2.0-", second.id[:-1], digits, digits[:11]):
        assert project.find(short, store) == second
    assert project.find(first.id[:10], store) == first
    with pytest.raises(NotFoundError, match=r"release 3\.0 of demo not found"):
        project.find("3.0", store)


def test_an_ambiguous_id_names_the_releases(folder: Folder, store: FolderStore) -> None:
    ids = [folder.project().push(store).id]
    folder.change(b"x")
    ids.append(folder.project().push(store).id)
    with pytest.raises(ConfigError, match=r"ambiguous release ID '1\.0'") as caught:
        folder.project().find("1.0", store)
    assert all(one in (caught.value.hint or "") for one in ids)


@pytest.mark.parametrize(
    ("line", "flags", "where"),
    [
        ('handler = "none.py"', {}, "other.toml: model.handler"),
        ('handler = "handler.py"', {"model.model-file": "x"}, "--set model.model-file"),
        ('handler = "handler.py"\n[torchserve]\nmodel_store = "x"', {}, "other.toml: torchserve.model_store"),
    ],
)
def test_an_error_names_the_source_of_the_value(
    line: str, flags: dict[str, str], where: str, folder: Folder, store: FolderStore
) -> None:
    path = folder.folder / "other.toml"
    path.write_text(f'[model]\nname = "demo"\nversion = "1"\n{line}\n')
    settings = load_settings(path, environment={}, flags=flags, folder=folder.folder)
    with pytest.raises(KdeployError) as caught:
        Project(settings, folder.events.append).push(store)
    assert (caught.value.where or "").endswith(where)


def test_a_store_takes_only_mar_files(folder: Folder, store: FolderStore) -> None:
    project = folder.project(model__archive_format="tgz")
    for work in (project.plan, lambda: project.push(store)):
        with pytest.raises(ConfigError, match=r"cannot store tgz: a model store takes a \.mar file"):
            work()


def test_each_warning_is_emitted_once_and_is_an_error_with_strict(folder: Folder, store: FolderStore) -> None:
    (folder.folder / "handler.py").write_text("import no_such_module\n" + HANDLER)
    project = folder.project()
    project.push(store)
    project.plan()
    warnings = [event for event in folder.events if isinstance(event, Warned)]
    assert len(warnings) == 1
    assert "no_such_module" in warnings[0].message
    with pytest.raises(ArchiveError, match="strict"):
        folder.project(strict=True).push(store)


@pytest.mark.parametrize("archive_format", ["zip-store", "default", "tgz", "no-archive"])
def test_an_export_replaces_an_archive_only_with_force(
    folder: Folder, archive_format: str, tmp_path: Path
) -> None:
    project = folder.project(model__archive_format=archive_format)
    out = tmp_path / "out"
    out.mkdir()
    path = project.export(out)
    assert path.exists()
    with pytest.raises(ArchiveError, match="already") as caught:
        project.export(out)
    assert "--force" in (caught.value.hint or "")
    if archive_format == "no-archive":  # kdeploy does not delete a folder
        with pytest.raises(ArchiveError, match="folder"):
            project.export(out, force=True)
    else:
        assert project.export(out, force=True) == path
