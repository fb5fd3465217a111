"""The page about the Python API: it names what is public, and its examples run as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import deployer
from tests.cli.conftest import Project, project, trained

__all__ = ["project", "trained"]

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "python-api.md").read_text("utf-8")
PRINTED = """\
Ready True
samples/3-0.png three
samples/8-0.png eight
Ready
True
0 1
invalid-config --set serving.batch-size
[10, 90]
['Ready', 'Ready', 'Ready']
['zero', 'nine']
['zero', 'nine']
"""


def test_the_page_names_every_public_name() -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", PAGE.partition("## What is public")[2], re.MULTILINE)
    parts = {
        name: re.findall(r"`(\w+)", parts) for names, parts in rows for name in re.findall(r"`(\w+)`", names)
    }
    assert sorted(parts) == sorted(deployer.__all__)
    assert set(parts) <= set(dir(deployer))
    assert not hasattr(deployer, "Missing")
    assert [(n, part) for n in parts for part in parts[n] if not hasattr(getattr(deployer, n), part)] == []


def test_importing_the_package_imports_no_library() -> None:
    loaded = (
        "import deployer, sys; print({'msgspec', 'urllib3', 'jinja2', 'deployer.config'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_examples_run_as_printed(project: Project) -> None:
    script = project.folder / "page.py"
    examples = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    script.write_text("\n".join(examples), "utf-8")
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=project.folder,
        env=project.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert (done.stdout, done.stderr, done.returncode) == (PRINTED, "", 0)
