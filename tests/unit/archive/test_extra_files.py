from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.archive import DigestCache, plan_archive, verify_archive, write_archive
from deployer.archive.extra_files import ExtraFiles, _glob
from deployer.archive.members import name_fault, names_fault
from deployer.config import Model
from deployer.errors import ArchiveError, KdeployError
from deployer.shipped import shipped

ADAPTER = {path.name for path in shipped("handler").glob("*.py")}
OWN = {"MAR-INF/MANIFEST.json", "handler.py", "kdeploy_handler.json", "weights.pt", *ADAPTER}


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.fsencode(name))


def extras(archive) -> set[str]:
    return {member.name for member in archive.members} - OWN


def test_paths_globs_and_folders(plan, root):
    put(root, "a.txt", "sub/b.txt", "data/one.json", "data/two.json", "assets/x", "assets/deep/y", "w[1].txt")
    archive = plan(extra_files=("a.txt", "sub/b.txt", "data/*.json", "assets", "w[1].txt"))
    assert extras(archive) == {"a.txt", "b.txt", "one.json", "two.json", "x", "deep/y", "w[1].txt"}
    assert extras(plan(extra_files=(str(root / "a.txt"),))) == {"a.txt"}
    assert extras(plan(extra_files=("**/*.json",))) == {"one.json", "two.json"}
    assert extras(plan(extra_files=("./assets",))) == {"x", "deep/y"}


def test_a_folder_with_a_slash_at_the_end_keeps_its_name(plan, root):
    put(root, "net/__init__.py", "net/layers/__init__.py", "prep/__init__.py", "src/lib/a.py", "src/app/b.py")
    archive = plan(extra_files=("net/", "prep/"))
    assert extras(archive) == {"net/__init__.py", "net/layers/__init__.py", "prep/__init__.py"}
    assert extras(plan(extra_files=("src/lib/",))) == {"lib/a.py"}
    assert extras(plan(extra_files=("src/*/",))) == {"lib/a.py", "app/b.py"}
    assert extras(plan(extra_files=(f"{root}/src/",))) == {"src/lib/a.py", "src/app/b.py"}
    assert extras(plan(extra_files=("src/lib/../app/",))) == {"app/b.py"}
    (root / "linked").symlink_to("src/lib")
    assert extras(plan(extra_files=("linked/",))) == {"linked/a.py"}


@pytest.mark.parametrize("pattern", [".", "./", "net/..", "net/../"])
def test_the_project_itself_has_no_name_in_the_archive(plan, root, pattern):
    put(root, "net/__init__.py", "labels.json")
    assert extras(plan(extra_files=(pattern,))) == {"net/__init__.py", "labels.json"}


def test_two_files_of_one_name_can_keep_their_folders(plan, root):
    put(root, "net/__init__.py", "prep/__init__.py", "net/sub/__init__.py", "a/x", "b/x")
    for patterns, folders in (
        (("net", "prep"), '"net/" and "prep/"'),
        (("net/**/*.py",), 'write "net/": a /'),
        (("a", "b"), '"a/" and "b/"'),
    ):
        with pytest.raises(ArchiveError, match="two files would have the name") as caught:
            plan(extra_files=patterns)
        assert folders in caught.value.hint
    assert len(extras(plan(extra_files=("net/", "prep/", "a/", "b/")))) == 5


def test_caches_and_hidden_folders_are_left_out(plan, root):
    put(
        root,
        "a/keep.py", "a/.keep", "a/.git", "a/venv/pyvenv.cfg", "a/venv/bin/python",
        "a/__pycache__/keep.pyc", "a/.hg/config", "a/sub/.DS_Store", "a/sub/x",
        "a/.DS_Store",
        "a/__MACOSX/y",
    )  # fmt: skip
    assert extras(plan(extra_files=("a",))) == {"keep.py", ".keep", "sub/x"}
    assert extras(plan(extra_files=("a/*",))) == {"keep.py", "x"}
    assert extras(plan(extra_files=("a/**/*",))) == {"keep.py", "x"}
    assert extras(plan(extra_files=("a/.hg", "a/.git"))) == {"config", ".git"}  # named


KEY = b"-----BEGIN RSA PRIVATE KEY-----\nMIIE"


def test_secrets_are_packed_only_if_they_are_named(plan, root):
    secrets = [
        "a/.env", "a/.env.local", "a/prod.env", "a/.netrc", "a/sub/.npmrc", "a/id_rsa", "a/store.p12",
        "a/kubeconfig", "a/credentials.json", "a/kaggle.json",
    ]  # fmt: skip
    put(root, "a/keep.json", "a/cert.pem", "a/id_rsa.pub", "a/environment.py", *secrets)
    (root / "a" / "tls.pem").write_bytes(KEY)
    (root / "a" / "robot.json").write_bytes(b'{"private_key": "%s"}' % KEY.replace(b"\n", b"\\n"))
    (root / "a" / "large.json").write_bytes(b" " * 70_000 + KEY)  # not a key file
    os.mkfifo(root / "pipe.json")
    found = plan(extra_files=("a",))
    kept = {"keep.json", "cert.pem", "id_rsa.pub", "environment.py", "large.json"}
    assert extras(found) == kept
    (note,) = found.notes
    assert note.startswith("left out as possible secrets: a/.env, ")
    assert {"a/tls.pem", "a/robot.json", *secrets} == set(
        note.removeprefix("left out as possible secrets: ").partition(". To pack")[0].split(", ")
    )
    assert extras(plan(extra_files=("a/*",))) == kept
    named = plan(extra_files=("a/.env", "a/tls.pem"))
    assert extras(named) == {".env", "tls.pem"}
    assert named.notes == ()
    with pytest.raises(ArchiveError, match="matches only files that are left out") as caught:
        plan(extra_files=("a/*.p12",))
    assert "a/store.p12" in caught.value.hint
    with pytest.raises(ArchiveError, match="device or pipe"):
        plan(extra_files=("pipe*",))


@pytest.mark.parametrize("pattern", [".", "*", "**/*", "state/..", "releases*", "state/*"])
def test_what_kdeploy_writes_is_never_packed(plan, root, pattern):
    put(
        root, "kdeploy.toml", "a.txt", "sub/kdeploy.toml", "releases/m/1/x.mar", "m.mar",
        "sub/m.mar", "sub/m.tar.gz", ".kdeploy/digests.json", "state/b.txt", "state/run/pid",
    )  # fmt: skip
    (root / "releases-link").symlink_to("releases")
    outputs = [root / "releases", root / "state" / "run"]
    model = Model(name="m", version="1", handler="handler.py", extra_files=("a.txt", pattern))
    digests = DigestCache(root / "digests-of-the-test")
    try:
        archive = plan_archive(model, root, digests, outputs=outputs)
    except ArchiveError as error:
        assert (pattern, error.what) == ("releases*", "releases* matches no file")
        return
    assert {name.rpartition("/")[2] for name in extras(archive)} <= {"a.txt", "b.txt"}
    named = Model(name="m", version="1", handler="handler.py", extra_files=("kdeploy.toml", "m.mar"))
    assert extras(plan_archive(named, root, digests, outputs=outputs)) == {"kdeploy.toml", "m.mar"}


def test_a_file_can_be_named_more_than_once(plan, root):
    put(root, "a.txt")
    (root / "same.txt").symlink_to("a.txt")
    assert extras(plan(extra_files=("a.txt", "*.txt", "a.txt"))) == {"a.txt", "same.txt"}
    assert extras(plan(extra_files=("handler.py", "weights.pt"))) == set()


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        (("a/x", "b/x"), "two files would have the name x: a/x and b/x"),
        (("a", "b"), "two files would have the name x: a/x and b/x"),
        (("other/weights.pt",), "two files would have the name weights.pt"),
        (("none",), "none not found"),
        (("*.none",), "matches no file"),
        (("",), "invalid path ''"),
        (("nul\0",), "invalid path"),
        (("pipe",), "pipe is a device or pipe, not a file"),
        (("kdeploy_handler.json",), "kdeploy reserves the name"),
        (("kdeploy_limits.py",), "kdeploy reserves the name"),
        (("kdeploy_handler",), None),
        (("reserved",), "kdeploy reserves the name"),
        (("mar",), "kdeploy reserves the name"),
        (("a\\b",), "contains a backslash"),
        (("new\nline",), "control character"),
        ((os.fsdecode(b"latin\xe9"),), "not UTF-8"),
        (("clash/one", "clash/two"), "d is both a file and a folder"),
        (("model-config.yaml",), "model-config.yaml is the name of a file that kdeploy adds"),
    ],
)
def test_invalid_extra_files(plan, root, extra, what):
    put(
        root,
        "a/x", "b/x", "other/weights.pt", "kdeploy_handler.json", "kdeploy_limits.py", "kdeploy_handler/x",
        "reserved/kdeploy_handler/x.py",
        "mar/mar-inf/x", "a\\b", "new\nline", os.fsdecode(b"latin\xe9"), "clash/one/d", "clash/two/d/e",
        "model-config.yaml",
    )  # fmt: skip
    (root / "requirements.txt").write_text("numpy")
    os.mkfifo(root / "pipe")
    if what is None:
        plan(extra_files=extra)
        return
    with pytest.raises(ArchiveError) as caught:
        plan(extra_files=extra, requirements_file="requirements.txt")
    assert what in caught.value.what
    assert caught.value.where == "kdeploy.toml: model.extra-files"


def test_a_config_file_that_is_also_an_extra_file(plan, root):
    put(root, "requirements.txt")
    (root / "c.yaml").write_text("a: 1\n")
    archive = plan(extra_files=("*.yaml",), config_file="c.yaml", requirements_file="requirements.txt")
    assert next(m for m in archive.members if m.name == "c.yaml").source == b"a: 1\nuseVenv: true\n"


def test_a_weights_file_with_a_reserved_name(plan, root):
    (root / "weights.pt").rename(root / "MAR-INF")
    (root / "model-config.yaml").write_bytes(b"weights")
    (root / "requirements.txt").write_text("numpy")
    for name in ("MAR-INF", "model-config.yaml"):
        with pytest.raises(ArchiveError) as caught:
            plan(serialized_file=name, requirements_file="requirements.txt")
        assert caught.value.where == "kdeploy.toml: model.serialized-file"


def test_links_are_followed_under_their_own_names(plan, root):
    put(root, "outside.txt", "a/real.txt", "a/sub/deep.txt", "b/x", "b/more/y")
    (root / "a" / "inside.txt").symlink_to("real.txt")
    (root / "a" / "out.txt").symlink_to("../outside.txt")
    (root / "a" / "folder").symlink_to("../b")
    (root / "link.txt").symlink_to("outside.txt")
    (root / "top").symlink_to("b")
    archive = plan(extra_files=("a", "link.txt"))
    assert extras(archive) == {
        "real.txt", "inside.txt", "sub/deep.txt", "out.txt", "folder/x", "folder/more/y", "link.txt",
    }  # fmt: skip
    assert archive.warnings == ()
    assert extras(plan(extra_files=("top",))) == {"x", "more/y"}
    (root / "a" / "dangling").symlink_to("gone")
    with pytest.raises(ArchiveError, match="a/dangling is a broken link to gone") as caught:
        plan(extra_files=("a",))
    assert "dvc pull" in caught.value.hint


def test_weights_that_are_a_broken_link(plan, root):
    (root / "weights.pt").unlink()
    (root / "weights.pt").symlink_to(".git/annex/objects/x")
    with pytest.raises(ArchiveError, match=r"weights\.pt is a broken link to \.git/annex") as caught:
        plan()
    assert "git annex get" in caught.value.hint


def test_a_link_that_leads_out_of_the_project_is_a_warning(plan, root, tmp_path):
    put(tmp_path, "elsewhere/secret.txt", "elsewhere/deep/z")
    put(root, "a/x")
    (root / "a" / "one.txt").symlink_to(tmp_path / "elsewhere" / "secret.txt")
    (root / "a" / "deep").symlink_to(tmp_path / "elsewhere" / "deep")
    for pattern in ("a", "a/*", "a/"):
        archive = plan(extra_files=(pattern,))
        assert {name.rpartition("/")[2] for name in extras(archive)} == {"x", "one.txt", "z"}
        (warning,) = archive.warnings
        assert f"model.extra-files: {pattern} contains a link that leads out of the project" in warning
        assert "elsewhere" in warning
    assert plan(extra_files=("a/one.txt", "a/deep/")).warnings == ()  # named


def test_a_snapshot_of_hugging_faces_cache(plan, root, tmp_path):
    for cache in (root / "cache" / "models--x", tmp_path / "hub" / "models--x"):
        put(cache, "blobs/1", "blobs/2", "snapshots/abc/README.md")
        (cache / "snapshots/abc/1_Pooling").mkdir()
        (cache / "snapshots/abc/config.json").symlink_to("../../blobs/1")
        (cache / "snapshots/abc/1_Pooling/config.json").symlink_to("../../../blobs/2")
        archive = plan(extra_files=(str(cache / "snapshots/abc"),))
        assert extras(archive) == {"README.md", "config.json", "1_Pooling/config.json"}
        assert archive.warnings == ()
        assert extras(plan(extra_files=(str(cache / "snapshots/abc") + "/",))) == {
            "abc/README.md", "abc/config.json", "abc/1_Pooling/config.json",
        }  # fmt: skip


@pytest.mark.parametrize("target", [".", "..", "../a", "../b"])
def test_a_link_to_a_folder_that_contains_it(plan, root, target):
    put(root, "a/x", "b/y")
    (root / "a" / "loop").symlink_to(target)
    (root / "b" / "back").symlink_to("../a")
    with pytest.raises(ArchiveError, match="is a link to a folder that contains it") as caught:
        plan(extra_files=("a",))
    assert caught.value.where == "kdeploy.toml: model.extra-files"


def test_links_that_multiply_files_have_a_limit(plan, root, monkeypatch):
    monkeypatch.setattr("deployer.archive.extra_files._AT_MOST", 200)
    put(root, "l0/x")
    for level in range(1, 12):  # 2 ** 11 paths
        (root / f"l{level}").mkdir()
        for name in "ab":
            (root / f"l{level}" / name).symlink_to(f"../l{level - 1}")
    with pytest.raises(ArchiveError, match="more than 200 files"):
        plan(extra_files=("l11",))
    assert len(extras(plan(extra_files=("l3",)))) == 8


def test_a_device_is_refused(plan, root):
    put(root, "a/x")
    (root / "a" / "zero").symlink_to("/dev/zero")
    with pytest.raises(ArchiveError, match="device or pipe, not a file") as caught:
        plan(extra_files=("a",))
    assert "move this out of the folder" in caught.value.hint


@contextlib.contextmanager
def as_unprivileged_user(root: Path) -> Iterator[None]:
    """Become a user without root's permission to read everything."""
    for folder in (root, *root.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("pattern", ["a", "a/*", "a/**", "**/*.txt", "a/x.txt", "a/sub", "a/sub/*"])
@pytest.mark.parametrize("mode", [0o000, 0o111, 0o444, 0o644])
def test_a_folder_without_permissions(plan, root, pattern, mode):
    put(root, "a/x.txt", "a/sub/y.txt")
    plan()  # imports modules that the other user cannot read
    (root / "a").chmod(mode)
    try:
        with as_unprivileged_user(root):
            try:
                names = [name for name, _ in ExtraFiles(root).find((pattern,))]
            except ArchiveError as error:
                assert error.where == "kdeploy.toml: model.extra-files"
                return
            if mode != 0o111:  # allows access to a known name
                with pytest.raises(ArchiveError):
                    plan(extra_files=(pattern,))
            assert names
    finally:
        (root / "a").chmod(0o755)


@pytest.mark.parametrize("pattern", ["a", "a/**", "**/f.txt", "**", "a/b/f.txt", "a/*/f.txt"])
def test_circular_links(plan, root, pattern):
    put(root, "a/b/f.txt")
    (root / "a" / "one").symlink_to("two")
    (root / "a" / "two").symlink_to("one")
    for name in ("up", "down", "again"):  # combinations of links give endless paths
        (root / "a" / "b" / name).symlink_to("..")
    try:
        assert "f.txt" in {name.rpartition("/")[2] for name in extras(plan(extra_files=(pattern,)))}
    except ArchiveError as error:
        assert error.where == "kdeploy.toml: model.extra-files"


@pytest.mark.parametrize("pattern", ["a", "**/f.txt"])
@pytest.mark.parametrize("depth", [1050, 2100])
def test_a_very_deep_folder(plan, root, pattern, depth):
    put(root, "a/top.txt")
    before = Path.cwd()
    os.chdir(root / "a")
    try:
        for _ in range(depth):
            Path("d").mkdir()
            os.chdir("d")
        Path("f.txt").write_text("x")
    finally:
        os.chdir(before)
    try:
        try:
            found = extras(plan(extra_files=(pattern,)))
        except ArchiveError as error:
            assert depth == 2100
            assert "File name too long" in error.what
        else:
            assert depth == 1050
            assert any(name.endswith("f.txt") for name in found)
    finally:
        subprocess.run(["rm", "-rf", root / "a"], check=True)


def test_a_dangling_link_with_the_name_of_another_file(plan, root):
    put(root, "a.txt", "b/x")
    (root / "b" / "a.txt").symlink_to("a.txt")
    with pytest.raises(ArchiveError, match=r"two files would have the name a\.txt"):
        plan(extra_files=("a.txt", "b/a.txt"))


def test_globs_match_as_pythons_glob(root):
    import glob

    put(root, "a.txt", "b/c.txt", "b/.h/d.txt", "b/e/f.txt", ".i/j.txt", "b/[k].txt", "b/e/g/l.txt", "m/n")
    for pattern in (
        "*", "*.txt", "**", "**/*", "**/*.txt", "b/**/f.txt", "b/*", "b/.*", "*/e/*", "b/[[]k].txt", "?.txt",
        "**/e/**", "[!a]*", "../*/b/c.txt", "./b//*.txt", "**/**/*.txt", ".*/*", "nothing*", "b/c.txt/*",
    ):  # fmt: skip
        found = glob.glob(pattern, root_dir=root, recursive=True)  # noqa: PTH207
        theirs = {os.path.normpath(root / name) for name in found}
        ours = {os.path.normpath(path) for path in _glob(pattern, root)}
        assert ours == theirs, pattern
    absolute = str(root / "b" / "*.txt")
    assert {str(path) for path in _glob(absolute, root)} == set(glob.glob(absolute))  # noqa: PTH207
    assert [path.name for path in _glob("*/", root)] != []
    assert all(path.is_dir() for path in _glob("*/", root))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a", None), ("a/b", None), (".a", None), ("…", None), ("a b", None), ("C:", None),
        ("", "empty part"), ("a//b", "empty part"), ("a/", "empty part"), ("./a", "empty part"),
        ("../a", "leads out"), ("a/..", "leads out"), ("/a", "leads out"),
        ("a\\b", "backslash"), ("a\0", "control"), ("a\x7f", "control"), ("a\x85", "control"),
        ("\udce9", "UTF-8"), ("a" * 256, "too long"), ("é" * 128, "too long"),
        ("/".join(["abc"] * 1100), "too long"),
    ],
)  # fmt: skip
def test_names_of_members(name, fault):
    found = name_fault(name)
    assert found is None if fault is None else fault in found


def test_names_that_exclude_each_other():
    assert names_fault(["a", "a.b", "a b", "ab/c"]) is None
    assert names_fault(["a/b", "a.c", "a"]) == "a is both a file and a folder"


PARTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(
    lambda part: "/" not in part and "\0" not in part
)


@given(
    st.dictionaries(st.lists(PARTS, min_size=1, max_size=3).map("/".join), st.binary(max_size=50), max_size=6)
)
def test_any_folder_becomes_an_archive_or_a_clear_error(layout):
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        bytes_of = []
        for turn in ("the first turn", "the second turn"):  # longer than any name in the layout
            root = base / turn
            (root / "extra").mkdir(parents=True)
            (root / "handler.py").write_text("def handle(data, context): ...")
            for path, content in layout.items():
                file = root / "extra" / path
                try:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
                    os.utime(file, (len(turn), 10**9))
                except OSError:
                    continue  # "..", a file where a folder would be
            model = Model(name="m", version="1", handler="handler.py", extra_files=("extra",))
            digests = DigestCache(root / "digests.json")
            try:
                archive = write_archive(plan_archive(model, root, digests), root / "m.mar", digests)
            except KdeployError as error:
                bytes_of.append(str(error).replace(turn, ""))
                continue
            verify_archive(root / "m.mar", archive.records)
            bytes_of.append((root / "m.mar").read_bytes())
            shutil.rmtree(root)
        assert bytes_of[0] == bytes_of[1]
