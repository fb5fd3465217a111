"""The README and the tutorial, followed word for word by a reader who has a checkout and nothing else.

`make full` installs everything into an empty environment. Otherwise the dependencies, but not kdeploy, come
from the environment of the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guides import Reader, blocks, clean_environment, section

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
pytestmark = [pytest.mark.torchserve, pytest.mark.long]

FULL = os.environ.get("KDEPLOY_TESTS_FULL") == "1"
SAMPLE = ROOT / "examples/digits/samples/3-0.png"
NETWORK = """\
import torch


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.head(x.mean(dim=(2, 3)))
"""
HANDLER = """\
import base64
import io
import os

import torch
from network import Network
from PIL import Image, ImageStat
from ts.torch_handler.base_handler import BaseHandler


class OwnHandler(BaseHandler):
    def initialize(self, context):
        folder = context.system_properties["model_dir"]
        self.network = Network()
        self.network.load_state_dict(torch.load(os.path.join(folder, "weights.pth"), weights_only=True))

    def handle(self, data, context):
        answers = []
        for row in data:
            image = row.get("data") or row.get("body")
            if isinstance(image, str):
                image = base64.b64decode(image)
            mean = ImageStat.Stat(Image.open(io.BytesIO(image)).convert("RGB")).mean
            scores = self.network(torch.tensor(mean).reshape(1, 3, 1, 1))
            answers.append({"mean": mean[0], "scores": scores.tolist()})
        return answers
"""


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader in a folder that holds a checkout of kdeploy."""
    folder = tmp_path / "a reader's folder"
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / "kdeploy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "kdeploy" / name)
    reader = Reader(
        folder,
        clean_environment(
            KDEPLOY_TARGETS_LOCAL_INGRESS_PORT="0",
            PIP_CONSTRAINT=(ROOT / "constraints.txt").as_uri(),  # pip splits a path at spaces
            PIP_DISABLE_PIP_VERSION_CHECK="1",
        ),
    )
    if not FULL:
        reader.environment["PIP_NO_BUILD_ISOLATION"] = "1"
        reader.run("python3 -m venv env")
        reader.commands.clear()
        (site,) = (folder / "env").glob("lib/python*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        shutil.copy(Path(sysconfig.get_path("scripts"), "torchserve"), folder / "env" / "bin")
    yield reader
    if shutil.which("kdeploy", path=reader.environment["PATH"]):
        subprocess.run(["kdeploy", "local", "stop"], cwd=reader.folder, env=reader.environment, check=False)


def test_the_tutorial_works_as_printed(reader: Reader) -> None:
    output = reader.follow(blocks(TUTORIAL))
    installed = reader.run("python -c 'import deployer; print(deployer.__file__)'")
    assert str(reader.environment["VIRTUAL_ENV"]) in installed
    (shown,) = (block.text for block in blocks(TUTORIAL) if block.language == "console")
    assert shown in output
    assert output.count("unchanged: release") == 1  # only push built the first release


def test_the_readme_works_as_printed(reader: Reader) -> None:
    output = reader.follow(blocks(section(README, "Use it")))
    assert "LABEL" in output


@pytest.mark.full
def test_the_demo_sets_up_and_runs(reader: Reader) -> None:
    demo = next(line for line in section(README, "See it work").splitlines() if line.startswith("make demo"))
    reader.run(f"cd kdeploy && {demo}")


def test_a_newcomer_serves_a_torchscript_model(reader: Reader) -> None:
    reader.follow(blocks(section(README, "Use it"))[:1])
    reader.run("kdeploy init my-model && cd my-model")
    (reader.folder / "network.py").write_text(NETWORK)
    script = "import torch, network; torch.jit.script(network.Network()).save('model.pt')"
    reader.run(f'python -c "{script}"')
    shutil.copy(SAMPLE, reader.folder / "photo.png")
    reader.run("kdeploy rollout")
    assert "LABEL" in reader.run("kdeploy predict --kserve photo.png")
    assert len(reader.commands) < 10


@pytest.mark.parametrize("handler", [pytest.param("", marks=pytest.mark.full), "own.py"])
def test_a_newcomer_serves_a_state_dict(reader: Reader, handler: str) -> None:
    reader.follow(blocks(section(README, "Use it"))[:1])
    flags = "--serialized-file weights.pth --model-file network.py"
    assert "--serialized-file " in README
    assert "--model-file " in README
    assert "--handler " in README
    reader.run(f"kdeploy init my-model {flags} {'--handler own.py' if handler else ''}".rstrip())
    reader.run("cd my-model")
    (reader.folder / "network.py").write_text(NETWORK)
    if handler:
        (reader.folder / handler).write_text(HANDLER)
    script = "import torch, network; torch.save(network.Network().state_dict(), 'weights.pth')"
    reader.run(f'python -c "{script}"')
    shutil.copy(SAMPLE, reader.folder / "photo.png")
    reader.run("kdeploy rollout")
    answer = reader.run("kdeploy predict --kserve photo.png")
    assert ('"mean"' if handler else "LABEL") in answer
    assert len(reader.commands) < 10
