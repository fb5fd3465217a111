"""Whether a folder can be written to, before a push."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.config import Store
from deployer.errors import StoreError
from deployer.store.folder import FolderStore
from deployer.store.open import open_store


@pytest.mark.parametrize("folder", ["", "new", "new/and/deep"])
def test_a_writable_folder_stays_as_it_is(tmp_path: Path, folder: str) -> None:
    FolderStore(tmp_path / folder).check_writable()
    assert list(tmp_path.iterdir()) == []


# Even root cannot create anything there.
@pytest.mark.parametrize("folder", ["/proc/model-store", "/proc/self/model-store/deep"])
def test_a_folder_that_cannot_be_written_to_is_an_error(folder: str) -> None:
    with pytest.raises(StoreError, match="cannot write to the model store") as caught:
        FolderStore(Path(folder)).check_writable()
    assert caught.value.where == folder


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write to the model store"):
        FolderStore(tmp_path / "file").check_writable()


def test_a_bucket_is_not_written_to_before_a_push(tmp_path: Path) -> None:
    open_store(Store(uri="s3://models/team"), tmp_path).check_writable()  # no server: it would fail
    assert list(tmp_path.iterdir()) == []
