"""The handler that `kdeploy init` writes loads what people save. It runs here as TorchServe runs it."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from deployer.scaffold import write_project

NETWORK = """
import torch

class Block(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.linear = torch.nn.Linear(size, size)

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block(3)

    def forward(self, images):
        return self.block.linear(images.mean(dim=(2, 3)))
"""

Load = Callable[..., Any]


def module_of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new project with a network."""
    write_project(tmp_path, "m", handler="init_handler.py", model_file="network_of_init.py")
    (tmp_path / "network_of_init.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("network_of_init", None)


@pytest.fixture
def network(folder: Path) -> torch.nn.Module:
    return module_of(folder / "network_of_init.py").Network().eval()


@pytest.fixture
def answers(folder: Path, network: torch.nn.Module) -> Load:
    """Return a function that loads a file with the handler, and checks its answer."""

    def check(file: str, model_file: str | None = "network_of_init.py") -> None:
        handler = module_of(folder / "init_handler.py").Handler()
        manifest = {"model": {"serializedFile": file, **({"modelFile": model_file} if model_file else {})}}
        handler.initialize(SimpleNamespace(system_properties={"model_dir": str(folder)}, manifest=manifest))
        picture = io.BytesIO()
        Image.new("RGB", (8, 8), (255, 0, 51)).save(picture, "PNG")
        (answer,) = handler.handle([{"body": picture.getvalue()}], None)
        with torch.inference_mode():
            scores = network(torch.tensor([1.0, 0.0, 0.2]).reshape(1, 3, 1, 1)).softmax(dim=1)[0]
        assert answer["class"] == int(scores.argmax())
        assert answer["confidence"] == pytest.approx(float(scores.max()), abs=1e-5)

    return check


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model."])
def test_state_dicts_and_checkpoints(
    folder: Path, network: torch.nn.Module, answers: Load, key: str | None, prefix: str
) -> None:
    state = {prefix + name: value for name, value in network.state_dict().items()}
    torch.save({"epoch": 3, "optimizer": {}, key: state} if key else state, folder / "w.pt")
    answers("w.pt")


def test_the_format_of_older_versions(folder: Path, network: torch.nn.Module, answers: Load) -> None:
    torch.save(network.state_dict(), folder / "w.pth", _use_new_zipfile_serialization=False)
    answers("w.pth")


def test_torchscript_with_and_without_a_model_file(
    folder: Path, network: torch.nn.Module, answers: Load
) -> None:
    torch.jit.script(network).save(str(folder / "w.pt"))
    answers("w.pt", None)
    answers("w.pt")


def test_an_exported_program(folder: Path, network: torch.nn.Module, answers: Load) -> None:
    program = torch.export.export(network, (torch.zeros(1, 3, 224, 224),))
    torch.export.save(program, folder / "w.pt2")
    answers("w.pt2", None)


@pytest.mark.parametrize("model_file", ["network_of_init.py", None])
def test_a_whole_module_is_refused_with_the_fix(
    folder: Path, network: torch.nn.Module, answers: Load, model_file: str | None
) -> None:
    torch.save(network, folder / "w.pt")
    fix = r"torch\.save\(model\.state_dict\(\)" if model_file else "set model.model-file"
    with pytest.raises(ValueError, match=fix):
        answers("w.pt", model_file)


def test_weights_that_do_not_fit(folder: Path, network: torch.nn.Module, answers: Load) -> None:
    torch.save({"other": torch.zeros(1)}, folder / "w.pt")
    with pytest.raises(ValueError, match=r"fit no network of network_of_init\.py \(Block, Network\)"):
        answers("w.pt")
    torch.save([1], folder / "w.pt")
    with pytest.raises(ValueError, match="not a state dict, but a list"):
        answers("w.pt")
    (folder / "network_of_init.py").write_text(NETWORK.replace("size)", "size=3)", 1))
    sys.modules.pop("network_of_init", None)
    torch.save({"linear.weight": torch.zeros(3, 3)}, folder / "w.pt")
    with pytest.raises(ValueError, match="fit no network"):
        answers("w.pt")


def test_one_network_whose_weights_differ(folder: Path, answers: Load) -> None:
    (folder / "network_of_init.py").write_text("import torch\nclass Only(torch.nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(3, 2)\n")  # fmt: skip
    sys.modules.pop("network_of_init", None)
    torch.save({"weight": torch.zeros(2, 3)}, folder / "w.pt")
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "bias"'):
        answers("w.pt")
