"""The documentation site builds without a warning, and neither building nor reading it needs a network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import PAGES, ROOT

# What a browser loads by itself, in contrast to a link that a reader follows.
LOADED = re.compile(
    r"""<(?:script|img|iframe|link)[^>]+(?:src|href)=["']((?:https?:)?//[^"']+)|url\(["']?(https?:[^)]+)"""
)


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    strict = ("--quiet", "--fail-on-warning", "--keep-going")
    command = [sys.executable, "-m", "sphinx", *strict, "-c", str(ROOT / "docs"), "-d", str(out / "trees")]
    return subprocess.run(
        [*command, str(source), str(out / "site")], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs")
    ended = build(ROOT, out)
    assert ended.returncode == 0, ended.stderr
    return out / "site"


def test_every_page_is_on_the_site(site: Path) -> None:
    public = [page for page in PAGES if ".github" not in page.parts]
    missing = [page for page in public if not (site / page.relative_to(ROOT)).with_suffix(".html").is_file()]
    assert missing == []


def test_no_page_loads_anything_from_a_network(site: Path) -> None:
    files = [file for kind in ("html", "css") for file in site.rglob(f"*.{kind}")]
    loaded = {
        url for file in files for match in LOADED.findall(file.read_text("utf-8")) for url in match if url
    }
    assert loaded == set()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[away](missing.md)", "missing.md"),
        ("[away](#no-such-heading)", "no-such-heading"),
        ("[away](other.md#no-such-heading)", "no-such-heading"),
        ("```json\n{one: two}\n```", "json"),
    ],
)
def test_a_broken_page_fails_the_build(text: str, complaint: str, tmp_path: Path) -> None:
    pages = tmp_path / "source" / "docs"
    pages.mkdir(parents=True)
    (pages / "other.md").write_text("# Other\n")
    (pages / "index.md").write_text(f"# Index\n\n{text}\n\n:::{{toctree}}\nother\n:::\n")
    ended = build(pages.parent, tmp_path)
    assert ended.returncode != 0
    assert complaint in ended.stderr


def test_a_page_outside_the_navigation_fails_the_build(tmp_path: Path) -> None:
    pages = tmp_path / "source" / "docs"
    shutil.copytree(ROOT / "docs" / "decisions", pages / "decisions")
    (pages / "index.md").write_text("# Index\n")
    ended = build(pages.parent, tmp_path)
    assert ended.returncode != 0
    assert "toctree" in ended.stderr
