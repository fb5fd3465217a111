"""Which modules of deployer have effects, by the table in pyproject.toml, and which are pure.

An effect is a library that reads or changes something outside the process, or reads the clock. A module is
pure if neither it nor any module that it imports directly imports an effect, and it is not in an acting
folder. Effects through `pathlib.Path` are not detected. `make lint` refuses an effect outside its packages.
`make test` requires full branch coverage of the pure modules; `python -m tests.effects` prints their files,
separated by commas.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import grimp
from importlinter import Contract, ContractCheck, fields, output

try:
    import tomllib
except ImportError:
    import tomli as tomllib  # type: ignore[no-redef]

ROOT = Path(__file__).parents[1]
ACTING = {"cli", "client", "target"}  # no module in these folders is pure
Packages = dict[str, tuple[str, ...]]


def read_table(lines: list[str]) -> Packages:
    """Read lines like `os, time -> store, cli`: return for each library the packages that can import it."""
    split = [[re.findall(r"[\w.]+", side) for side in line.split("->")] for line in lines]
    return {
        library: tuple(f"deployer.{package}" for package in packages)
        for libs, packages in split
        for library in libs
    }


class EffectsContract(Contract):
    """Only the modules of its packages import a library."""

    type_name = "effects"
    packages = fields.ListField(subfield=fields.StringField())

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        wrong = [
            f"{module} imports {library}, which belongs to {', '.join(packages)}"
            for library, packages in read_table(self.packages).items()
            if library in graph.modules
            for module in sorted(graph.find_modules_that_directly_import(library))
            if not any(f"{module}.".startswith(f"{package}.") for package in packages)
        ]
        return ContractCheck(kept=not wrong, metadata={"wrong": wrong})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["wrong"]:
            output.print_error(line)


def find_pure() -> dict[str, Path]:
    """Return the pure modules and their files."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    effects = next(
        read_table(contract["packages"]) for contract in linter["contracts"] if "packages" in contract
    )
    graph = grimp.build_graph(
        "deployer", include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )
    imports = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
    impure = {module for module, imported in imports.items() if imported & effects.keys()}
    pure = [m for m in imports if m.startswith("deployer.") and not ({m} | imports[m]) & impure]
    parts = {module: module.split(".") for module in sorted(pure)}
    bases = {module: ROOT.joinpath(*path) for module, path in parts.items() if not ACTING & set(path)}
    return {m: b / "__init__.py" if b.is_dir() else b.with_suffix(".py") for m, b in bases.items()}


if __name__ == "__main__":
    sys.stdout.write(",".join(str(file.relative_to(ROOT)) for file in find_pure().values()))
