from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deployer.archive.imports import provides
from deployer.archive.model_config import with_use_venv
from deployer.archive.requirements import Requirements, read_requirements
from deployer.errors import ArchiveError


def read(text: str) -> Requirements:
    return read_requirements(text.encode(), "requirements.txt")


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("numpy", ["numpy"]),
        ("  Scikit_Learn == 1.5.2  # why", ["scikit-learn"]),
        ("ruamel.yaml>=0.18,<1", ["ruamel-yaml"]),
        ("uvicorn[standard] ~= 0.30 ; python_version < '3.10'", ["uvicorn"]),
        ("a@ https://host/a.zip", ["a"]),
        ("a (>=1)", ["a"]),
        ("a===1", ["a"]),
        ("a!=1", ["a"]),
        ("a --hash=sha256:00 \\\n  --hash=sha256:01", ["a"]),
        ("a==1 \\\n\n", ["a"]),
        ("a==1 \\", ["a"]),
        ("# a comment\n\n--index-url https://host/simple\nnumpy", ["numpy"]),
        ("\ufeffnumpy", ["numpy"]),
    ],
)
def test_lines_that_pip_accepts(line, names):
    assert read(line) == Requirements(tuple(names), has_index="--index-url" in line)


@pytest.mark.parametrize(
    "line",
    [
        "git+https://host/repo",
        "git+https://host/repo.git@main#egg=mine",
        "-e git+https://host/repo.git@main#egg=mine",
        "https://host/foo-1.0.tar.gz",
        "-r https://host/base.txt",
        "-r $BASE/base.txt",
        "-e ${HERE}/mine",
    ],
)
def test_lines_that_can_install_any_module(line):
    found = read(line)
    assert (found.open, found.places, found.warnings) == (True, (), ())


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("-e ./mine", "mine"),
        ("--editable=mine/", "mine"),
        ("./mine[fast]", "mine"),
        (".", "."),
        ("./x.zip", "x.zip"),
        ("./wheels/Foo-1.0-py3-none-any.whl", "wheels/Foo-1.0-py3-none-any.whl"),
        ("foo-1.0.tar.gz", "foo-1.0.tar.gz"),
        ("../lib", "../lib"),
    ],
)
def test_lines_that_name_a_place_in_the_archive(line, place):
    assert read(f"numpy\n{line}") == Requirements(("numpy",), places=((2, place),), open=True)


def test_included_files():
    found = read("-r base.txt\n--requirement=more.txt\n-cc.txt\n--constraint d.txt\nnumpy")
    assert found == Requirements(
        ("numpy",),
        ((1, "-r", "base.txt"), (2, "-r", "more.txt"), (3, "-c", "c.txt"), (4, "-c", "d.txt")),
    )


@pytest.mark.parametrize(
    ("line", "place", "hint"),
    [
        (
            "certifi @ file:///croot/certifi_1/work/certifi",
            "file:///croot/certifi_1/work/certifi",
            "`certifi==",
        ),
        ("mkl-fft @ file:///opt/conda/mkl", "file:///opt/conda/mkl", "`mkl-fft==VERSION`"),
        ("a[b] @ file:///C:/wheels/a-1-py3-none-any.whl", "file:///C:/wheels", "`a==VERSION`"),
        ("file:///opt/mine", "file:///opt/mine", "pip wheel"),
        ("file:wheels/a-1.0-py3-none-any.whl", "file:wheels", "`./a-1.0-py3-none-any.whl`"),
        ("git+file:///home/jo/mine", "git+file:///home/jo/mine", "pip wheel"),
        ("-e git+file:///home/jo/mine#egg=mine", "git+file:///home/jo/mine#egg=mine", "pip wheel"),
        ("/opt/mine", "/opt/mine", "pip wheel"),
        ("-e /home/jo/mine", "/home/jo/mine", "pip wheel"),
        ("~/mine-1.0.tar.gz", "~/mine-1.0.tar.gz", "`./mine-1.0.tar.gz`"),
        ("C:\\wheels\\a-1.0-py3-none-any.whl", "C:\\wheels", "`./a-1.0-py3-none-any.whl`"),
        ("C:/mine", "C:/mine", "pip wheel"),
        (".\\mine", ".\\mine", "pip wheel"),
        ("-r /opt/base.txt", "/opt/base.txt", "relative to the requirements file"),
        ("-c file:///opt/c.txt", "file:///opt/c.txt", "relative"),
        ("--find-links=/opt/wheels", "/opt/wheels", "`./FILE.whl`"),
        ("-f file:///opt/wheels", "file:///opt/wheels", "`./FILE.whl`"),
        ("--index-url file:///opt/simple", "file:///opt/simple", "`./FILE.whl`"),
    ],
)
def test_places_on_this_machine_are_refused(line, place, hint):
    with pytest.raises(ArchiveError, match="is a place on this machine") as caught:
        read(f"numpy\n# why\n{line}")
    assert caught.value.what.startswith(place)
    assert caught.value.where == "requirements.txt:3"
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        ("torch==2.4.0+cu121", "torch==2.4.0+cu121 is a build of this machine", "`torch==2.4.0`"),
        ("jaxlib===0.4.1+cuda12 --hash=sha256:0", "jaxlib==0.4.1+cuda12", "--extra-index-url"),
        ("pkg-resources==0.0.0", "pkg-resources", "Remove the line"),
        ("numpy=1.26.4=py311h64a7726_0", "invalid requirement", "`numpy==1.26.4`"),
        ("a @ wheels/x.whl", "wheels/x.whl is not a URL", "`./FILE.whl`"),
        ("git@host:jo/mine.git", "is not a URL", "https://"),
        ("numpy==2.4.6", "numpy ==2.4.6 needs a newer Python than 3.9", "numpy 2.0 or older"),
        ("scipy>=1.14,<2", "scipy >=1.14,<2 needs a newer Python", "1.13"),
        ("Scikit_Learn ~= 1.7", "scikit-learn ~= 1.7 needs", "1.6"),
        ("./torch-2.4-cp311-cp311-linux_x86_64.whl", "is a wheel for cp311", "serving container"),
        ("a @ https://host/a-1-cp310-cp310-linux_x86_64.whl#x", "is a wheel for cp310", ""),
        ("./a-1.0-py3-none-macosx_11_0_arm64.whl", "is a wheel for macosx_11_0_arm64", ""),
        ("./a-1.0-py2-none-any.whl", "is a wheel for py2", ""),
    ],
)
def test_what_the_serving_container_cannot_install(line, what, hint):
    with pytest.raises(ArchiveError) as caught:
        read(f"pyyaml\n{line}")
    assert what in caught.value.what
    assert caught.value.where == "requirements.txt:2"
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "line",
    [
        "--extra-index-url https://download.pytorch.org/whl/cu121\ntorch==2.4.0+cu121",
        "torch==2.4.0+cu121\n-f https://host/wheels.html",
        "torch==2.4.0+cu121 ; sys_platform == 'win32'",
        "pywin32 @ file:///C:/pywin32 ; sys_platform == 'win32'",
        "numpy==2.4.6 ; python_version >= '3.11'",
        "numpy==2.0.2",
        "numpy<3",
        "numpy",
        "numpy>=1.26,<2.3",
        "pandas==2.3.3",
        "a @ https://host/a-1-cp39-cp39-manylinux2014_x86_64.whl",
        "a @ https://host/a-1-cp36-abi3-manylinux1_x86_64.manylinux2010_x86_64.whl",
        "a @ https://host/a-1-py2.py3-none-any.whl",
        "a @ https://host/a-1-1-py38-none-any.whl",
        "a @ https://host/odd.whl",
        "a @ https://host/a.whl ; python_version > '3'",
    ],
)
def test_what_the_serving_container_can_install(line):
    assert read(line).warnings == ()


def test_another_python():
    assert read_requirements(b"numpy==2.4.6", "r.txt", minor=11).distributions == ("numpy",)
    assert read_requirements(b"./a-1-cp311-cp311-linux_x86_64.whl", "r.txt", minor=11).open
    with pytest.raises(ArchiveError, match=r"newer Python than 3\.10"):
        read_requirements(b"numpy==2.3", "r.txt", minor=10)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("-e git+ssh://git@host/jo/mine.git@abc#egg=mine", "needs git and an SSH key"),
        ("mine @ git+ssh://git@host/jo/mine.git", "needs git and an SSH key"),
        ("a @ file:///croot/a ; python_version >= '3.6'", "file:///croot/a is a place on this machine"),
        ("--index-url http://localhost:3141/root/pypi", "is an address of this machine"),
        ("--extra-index-url=http://127.0.0.1:8080/simple", "is an address of this machine"),
    ],
)
def test_lines_that_can_fail_are_warnings(line, what):
    (warning,) = read(f"numpy\n{line}").warnings
    assert warning.startswith("requirements.txt:2: ")
    assert what in warning


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("numpy\nfoo bar", ":2"),
        ("foo = 1", ":1"),
        ("a \\\n= 1", ":1"),
        ("{}", ":1"),
        ("", ""),
        ("# nothing\n\n", ""),
    ],
)
def test_lines_that_pip_refuses(text, where):
    with pytest.raises(ArchiveError) as caught:
        read(text)
    assert caught.value.where == f"requirements.txt{where}"


@pytest.mark.parametrize(
    "line",
    [
        "-i https://user:secret@host/simple",
        "--extra-index-url=https://secret:@host/simple".replace("secret", "s" * 40),
        "# git+https://user:${TOKEN}secret@host/a.git",
        f"a @ https://{'s' * 40}@host/a.zip",
    ],
)
def test_credentials_in_a_url_are_refused(line):
    with pytest.raises(ArchiveError, match="contains credentials") as caught:
        read(f"numpy\n{line}")
    assert caught.value.where == "requirements.txt:2"
    assert "${NAME}" in caught.value.hint


@pytest.mark.parametrize(
    "line",
    [
        "-i https://${PIP_USER}:${PIP_TOKEN}@host/simple",
        "-i https://VssSessionToken@host/simple",
        "git+ssh://git@host/a.git#egg=a",
        "git+https://host/repo.git@main#egg=a",
    ],
)
def test_a_login_without_a_secret(line):
    assert read(f"numpy\n{line}").distributions == ("numpy",)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
)
def test_the_encodings_that_pip_reads(encoding):
    mark = "" if encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32") else "\ufeff"
    content = f"{mark}pyyaml # é\r\npackaging\r\n".encode(encoding)
    assert read_requirements(content, "r.txt").distributions == ("pyyaml", "packaging")


def test_an_encoding_named_in_a_comment():
    content = "# -*- coding: latin-1 -*-\n# é\nnumpy".encode("latin-1")
    assert read_requirements(content, "r.txt").distributions == ("numpy",)
    for name in (b"none", b"utf-8", b"undefined", b"hex"):
        with pytest.raises(ArchiveError, match="is not") as caught:
            read_requirements(b"# coding=" + name + b"\n# \xe9\nnumpy", "r.txt")
        assert caught.value.hint == "Save it as UTF-8."


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"numpy\xff", "not UTF-8"),
        (b"\xff\xfea", "not UTF-16"),
        ("numpy".encode("utf-16-le"), "NUL bytes, as UTF-16 without a byte order mark"),
    ],
)
def test_a_file_in_no_encoding_of_pip(content, what):
    with pytest.raises(ArchiveError, match=what) as caught:
        read_requirements(content, "requirements.txt")
    assert (caught.value.where, caught.value.hint) == ("requirements.txt", "Save it as UTF-8.")


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content):
    try:
        read_requirements(content, "r.txt")
    except ArchiveError as error:
        assert error.where.startswith("r.txt")


@pytest.mark.parametrize(
    ("distribution", "module"),
    [
        ("scikit-learn", "sklearn"), ("opencv-python-headless", "cv2"), ("pyyaml", "yaml"),
        ("beautifulsoup4", "bs4"), ("python-dateutil", "dateutil"),
        ("sentence-transformers", "sentence_transformers"), ("azure-storage-blob", "azure"),
        ("ruamel-yaml", "ruamel"),
        ("python-dotenv", "dotenv"), ("pymongo", "pymongo"), ("pymongo", "mongo"), ("foo", "pyfoo"),
        ("foo-python", "foo"),
        ("py", "py"), ("jinja2", "jinja2"), ("nltk", "NLTK"),
    ],
)  # fmt: skip
def test_modules_that_a_distribution_can_contain(distribution, module):
    assert provides(distribution, module)


@pytest.mark.parametrize(("distribution", "module"), [("numpy", "pandas"), ("foo", "bar"), ("a-b", "b")])
def test_modules_that_a_distribution_does_not_contain(distribution, module):
    assert not provides(distribution, module)


@pytest.mark.parametrize(
    ("config", "packed"),
    [
        (b"a: 1\n", b"a: 1\nuseVenv: true\n"),
        (b"a: 1", b"a: 1\nuseVenv: true\n"),
        (b"a: 1\r\nb: |\r\n  text", b"a: 1\r\nb: |\r\n  text\nuseVenv: true\n"),
        (b"# only\nhandler:\n  x: [1]\n# end", b"# only\nhandler:\n  x: [1]\n# end\nuseVenv: true\n"),
        (b"useVenv: false\na: 1", b"useVenv: false\na: 1"),
        (b"useVenv: true", b"useVenv: true"),
    ],
)
def test_the_users_own_config_is_kept_byte_for_byte(config, packed):
    assert with_use_venv(config, "c.yaml", wanted=True) == packed
    assert with_use_venv(config, "c.yaml", wanted=False) == config
    assert yaml.safe_load(packed)["useVenv"] in (True, False)


@pytest.mark.parametrize(
    "config",
    [b"{a: 1}", b"  a: 1", b"a: 1\n...\n", "a: 1\n".encode("utf-16"), b"a: 1\n? b\n", b'"a": 1\n---\n'],
)
def test_yaml_that_cannot_be_extended(config):
    try:
        packed = with_use_venv(config, "c.yaml", wanted=True)
    except ArchiveError as error:
        assert "useVenv" in error.what or "YAML" in error.what
    else:
        assert yaml.safe_load(packed) == {**yaml.safe_load(config), "useVenv": True}


@pytest.mark.parametrize(
    ("config", "where"),
    [
        (b"", "c.yaml"),
        (b"# nothing", "c.yaml"),
        (b"- a", "c.yaml"),
        (b"a: 1\nb: [", "c.yaml:2"),
        (b"a: 1\n\tb: 2", "c.yaml:2"),
        (b"a: \xff", "c.yaml"),
        (b'a: !!int ""', "c.yaml"),
        (b"a: !!timestamp x", "c.yaml"),
        (b"a: 2001-99-99", "c.yaml"),
        (b"a: !!python/name:os.system x", "c.yaml:1"),
        (b"[" * 5000, "c.yaml"),
        (b"a: 1\n--- \nb: 2", "c.yaml:2"),
    ],
)
def test_config_files_that_are_not_a_mapping(config, where):
    with pytest.raises(ArchiveError) as caught:
        with_use_venv(config, "c.yaml", wanted=False)
    assert caught.value.where == where


@given(
    st.text(
        st.characters(codec="ascii", categories=["L", "N", "P", "S", "Z"], include_characters="\n\t"),
        max_size=40,
    )
)
def test_any_text_is_packed_with_use_venv_or_refused(text):
    try:
        packed = with_use_venv(text.encode(), "c.yaml", wanted=True)
    except ArchiveError:
        return
    assert yaml.safe_load(packed) == {"useVenv": True, **yaml.safe_load(text)}
