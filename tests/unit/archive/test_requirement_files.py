"""What a requirements file names must be in the archive; a file that nothing installs is a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.archive import Archive
from deployer.errors import ArchiveError


def write(root: Path, **files: str | bytes) -> None:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_txt", ".txt").replace("_whl", ".whl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def content_of(archive: Archive, name: str) -> bytes:
    (source,) = [member.source for member in archive.members if member.name == name]
    return source if isinstance(source, bytes) else source.read_bytes()


def test_wheels_and_folders_in_the_archive(plan, root):
    wheel = "foo-1.0-py3-none-any.whl"
    (root / "wheels").mkdir()
    (root / "wheels" / wheel).write_bytes(b"wheel")
    write(root, mine__setup_py="", mine__pyproject_toml="")
    (root / "mine" / "pyproject.toml").write_text("")
    for line, extra in (
        (f"./wheels/{wheel}", "wheels/"),
        (f"wheels/{wheel}", "wheels/"),
        (f"./{wheel}", "wheels"),
        (wheel, f"wheels/{wheel}"),
        ("./mine", "mine/"),
        ("-e mine/", "mine/"),
        (".", "mine"),
    ):
        write(root, requirements_txt=f"numpy\n{line}")
        plan(requirements_file="requirements.txt", extra_files=(extra,))


@pytest.mark.parametrize(
    ("line", "extra", "hint"),
    [
        ("./wheels/a-1-py3-none-any.whl", "wheels/a-1-py3-none-any.whl", "Write `./a-1-py3-none-any.whl`"),
        ("./wheels/a-1-py3-none-any.whl", "labels.txt", '"wheels/" into model.extra-files'),
        ("a-1-py3-none-any.whl", "labels.txt", "Add a-1-py3-none-any.whl to model.extra-files"),
        ("./mine", "labels.txt", "Add mine to model.extra-files"),
        ("../lib", "labels.txt", "write its path in the archive"),
        (".", "labels.txt", "pip wheel ."),
        ("-e .", "labels.txt", "pip wheel ."),
    ],
)
def test_places_that_the_archive_lacks(plan, root, line, extra, hint):
    write(root, labels_txt="a", requirements_txt=f"numpy\n{line}")
    (root / "wheels").mkdir()
    (root / "wheels" / "a-1-py3-none-any.whl").write_bytes(b"wheel")
    with pytest.raises(ArchiveError, match="is not in the archive") as caught:
        plan(requirements_file="requirements.txt", extra_files=(extra,))
    assert caught.value.where == "requirements.txt:2"
    assert hint in caught.value.hint


def test_included_files_are_read_with_their_own_lines(plan, root):
    write(root, req__prod_txt="-r base.txt\n-c limits.txt", req__base_txt="-r more/deep.txt\nnumpy")
    write(root, req__more__deep_txt="-r ../base.txt\npandas", req__limits_txt="b @ file:///opt/b")
    files = ("req/base.txt", "req/more/", "req/limits.txt")
    (root / "handler.py").write_text("import numpy, pandas, scipy\ndef handle(data, context): ...")
    archive = plan(requirements_file="req/prod.txt", extra_files=files)
    assert [warning.partition(", which")[0] for warning in archive.warnings] == [
        "handler.py:1: imports scipy"
    ]
    for text, where in (("a @ file:///opt/a", ":1"), ("ok\n-r gone.txt", ":2"), ("# only", "")):
        write(root, req__more__deep_txt=text)
        if not where:
            plan(requirements_file="req/prod.txt", extra_files=files)
            continue
        with pytest.raises(ArchiveError) as caught:
            plan(requirements_file="req/prod.txt", extra_files=files)
        assert caught.value.where == f"req/more/deep.txt{where}"


def test_an_included_file_uses_the_index_of_the_first(plan, root):
    write(root, r_txt="-r base.txt", base_txt="torch==2.4.0+cpu")
    with pytest.raises(ArchiveError, match="build of this machine"):
        plan(requirements_file="r.txt", extra_files=("base.txt",))
    write(root, r_txt="--extra-index-url https://host/whl\n-r base.txt")
    plan(requirements_file="r.txt", extra_files=("base.txt",))


def test_credentials_in_an_included_file(plan, root):
    write(root, r_txt="-c c.txt\nnumpy", c_txt="# https://jo:secret@host/")
    with pytest.raises(ArchiveError, match="contains credentials") as caught:
        plan(requirements_file="r.txt", extra_files=("c.txt",))
    assert caught.value.where == "c.txt:1"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_utf16_is_packed_as_utf8(plan, root, encoding):
    write(
        root,
        r_txt="pyyaml\r\n-r base.txt\r\n-c c.txt".encode(encoding),
        base_txt="numpy".encode(encoding),
        c_txt="numpy<3".encode(encoding),
    )
    archive = plan(requirements_file="r.txt", extra_files=("base.txt", "c.txt"))
    assert content_of(archive, "r.txt").decode("utf-8-sig") == "pyyaml\r\n-r base.txt\r\n-c c.txt"
    assert content_of(archive, "base.txt") == b"\xef\xbb\xbfnumpy"
    assert content_of(archive, "c.txt") == b"\xef\xbb\xbfnumpy<3"
    write(root, r_txt="# é\nnumpy")
    assert content_of(plan(requirements_file="r.txt"), "r.txt") == "# é\nnumpy".encode()


def test_a_requirements_file_that_nothing_installs(plan, root):
    write(root, extra__requirements_txt="numpy", extra__sub__requirements_gpu_txt="a", extra__labels_txt="x")
    (root / "extra" / "requirements-dev.txt").write_text("pytest")
    archive = plan(extra_files=("extra",))
    assert sorted(archive.warnings) == [
        f"{name} is in the archive, but TorchServe does not install it; name it in model.requirements-file"
        for name in ("requirements.txt", "sub/requirements_gpu.txt")
    ]
    write(root, prod_txt="-r requirements.txt")
    archive = plan(extra_files=("extra",), requirements_file="prod.txt")
    (warning,) = archive.warnings
    assert warning == (
        "sub/requirements_gpu.txt is in the archive, but TorchServe does not install it; "
        "add the line `-r sub/requirements_gpu.txt` to prod.txt"
    )
    assert plan(extra_files=("extra/*.txt",), requirements_file="extra/requirements.txt").warnings == ()
