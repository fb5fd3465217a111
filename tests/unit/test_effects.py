"""Which modules count as pure, and the contract for effects."""

from __future__ import annotations

import ast

import grimp
import pytest

from tests.effects import ROOT, EffectsContract, find_pure


def test_a_module_whose_docstring_says_pure_is_pure() -> None:
    pure = set(find_pure().values())
    files = sorted(ROOT.joinpath("deployer").rglob("*.py"))
    words = {
        file: (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0] for file in files
    }
    assert [file for file, first in words.items() if first.endswith("Pure.") and file not in pure] == []


def test_only_modules_without_effects_are_pure() -> None:
    pure = find_pure().keys()
    assert {"deployer.release", "deployer.rollout.engine", "deployer.targets.kserve.state.readiness"} <= pure
    assert not {"deployer.files", "deployer.cli.main", "deployer.targets.kserve.target.read"} & pure


@pytest.mark.parametrize(
    ("module", "library", "kept"),
    [
        ("deployer.store.s3.client", "os", True),
        ("deployer.stores", "os", False),  # a new folder has no effects until the table lists it
        ("deployer.rollout.new", "socket", False),
        ("deployer.rollout.new", "json", True),
        ("deployer.store.s3", "typer", False),
    ],
)
def test_an_effect_is_refused_outside_its_folders(module: str, library: str, kept: bool) -> None:
    graph = grimp.ImportGraph()
    for name in (module, library):
        graph.add_module(name)
    graph.add_import(importer=module, imported=library)
    packages = ["typer -> cli", "os, socket -> cli, store"]
    contract = EffectsContract("effects", {}, {"packages": packages})
    assert contract.check(graph, verbose=False).kept is kept
