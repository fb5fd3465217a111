from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from deployer.archive.members import Archive, Member
from deployer.archive.mirror import COPIED, Mirror
from deployer.errors import ArchiveError


def archive(**files: bytes | Path) -> Archive:
    """Plan an archive; a double underscore in a keyword is a slash, a single one a dot."""
    members = []
    for key, source in files.items():
        name = key.replace("__", "/").replace("_", ".")
        content = source if isinstance(source, bytes) else source.read_bytes()
        digest = sha256(content).hexdigest() if len(content) <= COPIED else None
        members.append(Member(name, len(content), digest, source))
    return Archive(name="demo", version="1.0", format="zip-store", members=tuple(members))


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    return Mirror(tmp_path / "state" / "demo.mar")


def contents(mirror: Mirror) -> dict[str, bytes]:
    files = (path for path in mirror.folder.rglob("*") if path.is_file())
    return {str(path.relative_to(mirror.folder)): path.read_bytes() for path in files}


def test_only_changed_members_are_written_and_named(mirror: Mirror, tmp_path: Path):
    source = tmp_path / "handler.py"
    source.write_text("a")
    assert mirror.update(archive(handler_py=source, data__x_txt=b"x")) == {"handler.py", "data/x.txt"}
    assert contents(mirror) == {"handler.py": b"a", "data/x.txt": b"x"}
    assert mirror.update(archive(handler_py=source, data__x_txt=b"x")) == set()
    source.write_text("b")
    assert mirror.update(archive(handler_py=source, data__x_txt=b"x")) == {"handler.py"}
    assert contents(mirror)["handler.py"] == b"b"


def test_a_save_that_changes_nothing_is_not_named(mirror: Mirror, tmp_path: Path):
    source = tmp_path / "handler.py"
    source.write_text("a")
    mirror.update(archive(handler_py=source))
    source.write_text("a")
    assert mirror.update(archive(handler_py=source)) == set()


def test_large_files_are_links_and_large_python_files_are_copies(mirror: Mirror, tmp_path: Path):
    weights, module = tmp_path / "model.pt", tmp_path / "table.py"
    weights.write_bytes(b"w" * (COPIED + 1))
    module.write_bytes(b"#" * (COPIED + 1))
    mirror.update(archive(model_pt=weights, table_py=module))
    assert (mirror.folder / "model.pt").readlink() == weights
    assert not (mirror.folder / "table.py").is_symlink()
    weights.write_bytes(b"v" * (COPIED + 2))
    assert mirror.update(archive(model_pt=weights, table_py=module)) == {"model.pt"}


def test_a_removed_member_leaves_no_empty_folder(mirror: Mirror):
    mirror.update(archive(a__b__c_txt=b"1", a__d_txt=b"2"))
    assert mirror.update(archive(a__d_txt=b"2")) == {"a/b/c.txt"}
    assert not (mirror.folder / "a" / "b").exists()
    assert contents(mirror) == {"a/d.txt": b"2"}


def test_a_file_can_become_a_folder_and_back(mirror: Mirror):
    mirror.update(archive(a=b"1"))
    mirror.update(archive(a__b=b"2"))
    assert contents(mirror) == {"a/b": b"2"}
    (mirror.folder / "a" / "of-the-worker").write_text("3")
    mirror.update(archive(a=b"1"))
    assert contents(mirror) == {"a": b"1"}


def test_the_first_update_removes_what_an_earlier_session_left(mirror: Mirror):
    mirror.folder.mkdir(parents=True)
    (mirror.folder / "old.py").write_text("1")
    mirror.update(archive(a=b"1"))
    (mirror.folder / "of-the-worker").write_text("2")
    mirror.update(archive(a=b"2"))
    assert contents(mirror) == {"a": b"2", "of-the-worker": b"2"}


def test_a_file_that_cannot_be_read_is_tried_again(mirror: Mirror, tmp_path: Path):
    source, planned = tmp_path / "handler.py", tmp_path / "planned.py"
    source.write_text("a")
    wanted = archive(handler_py=source)
    source.rename(planned)
    with pytest.raises(ArchiveError, match="not found"):
        mirror.update(wanted)
    planned.rename(source)
    assert mirror.update(wanted) == {"handler.py"}
