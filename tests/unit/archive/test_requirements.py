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
    assert read(line) == Requirements(tuple(names))


@pytest.mark.parametrize(
    "line",
    [
        "git+https://host/repo",
        "git+https://host/repo.git@main#egg=mine",
        "-e ./mine",
        "./mine",
        "/opt/mine",
        "file:///opt/mine",
        "mine/",
        "./x.zip",
        "./wheels/Foo-1.0-py3-none-any.whl",
        "foo-1.0.tar.gz",
    ],
)
def test_lines_that_can_install_any_module(line):
    assert read(line) == Requirements(open=True)


def test_included_files():
    found = read("-r base.txt\n--requirement=more.txt\n-cc.txt\n--constraint d.txt\nnumpy")
    assert found == Requirements(
        ("numpy",), ((1, "base.txt"), (2, "more.txt"), (3, "c.txt"), (4, "d.txt")), open=True
    )
    assert not read("-c c.txt\nnumpy").open


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


def test_a_file_that_is_not_utf8():
    with pytest.raises(ArchiveError, match="not UTF-8"):
        read_requirements(b"numpy\xff", "requirements.txt")


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
