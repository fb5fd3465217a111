"""Writes the reference pages that are made from the code: `make docs`. A test finds out stale ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.main import get_command

from deployer.cli.app import app
from deployer.cli.main import INTERNAL, INTERRUPTED, TERMINATED
from deployer.config import json_schema
from deployer.errors import DIFFERENT, KdeployError
from docs.outputs import outputs_page, schemas

FOLDER = Path(__file__).parent / "reference"
STOPPED = (
    "Part of the work may be done, such as some of a release's documents; stderr says how far it got. "
    "Run the command again to complete it."
)
MADE = "<!-- Made from the code by `make docs`. -->\n\n"


def pages() -> dict[Path, str]:
    """Return the text of every page that is made from the code."""
    return {
        FOLDER / "commands.md": commands_page(),
        FOLDER / "exit-codes.md": exit_codes_page(),
        FOLDER / "kdeploy.schema.json": json.dumps(json_schema(), indent=2) + "\n",
        FOLDER / "outputs.md": outputs_page(),
        FOLDER / "outputs.schema.json": json.dumps(schemas(), indent=2) + "\n",
    }


def commands_page() -> str:
    """Describe every command, its arguments and its options."""
    lines = [MADE + "# Commands\n"]
    for path, command in _walk(get_command(app), "kdeploy"):
        lines.append(f"## `{path}`\n\n{command.help or ''}\n")
        rows = []
        for parameter in command.params:
            if parameter.name in ("help", "install_completion", "show_completion"):
                continue
            names = parameter.opts + parameter.secondary_opts
            shown = parameter.name.upper() if parameter.param_type_name == "argument" else ", ".join(names)
            rows.append(f"| `{shown}` | {getattr(parameter, 'help', None) or ''} |")
        if rows:
            lines.append("| | |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(lines)


def _walk(command: typer.core.TyperCommand, path: str) -> Iterator[tuple[str, typer.core.TyperCommand]]:
    inner = getattr(command, "commands", {})
    if not inner or getattr(command, "invoke_without_command", False):
        yield path, command
    for name, child in inner.items():
        yield from _walk(child, f"{path} {name}")


def exit_codes_page() -> str:
    """List every exit code with what it means."""
    rows = [
        (0, "Done.", ""),
        (INTERNAL, "An error that kdeploy does not know: a bug in it.", ""),
        (2, "Wrong usage: an unknown flag, say.", ""),
    ]
    for kind in KdeployError.__subclasses__():
        again = "yes" if kind.retryable else ""
        rows.append((kind.exit_code, " ".join((kind.__doc__ or "").split()), again))
    rows.append((DIFFERENT, "No failure: `kdeploy diff` found what a rollout would change.", ""))
    rows.sort()
    rows.append((INTERRUPTED, f"Interrupted by Ctrl-C. {STOPPED}", "yes"))
    rows.append((TERMINATED, f"Ended by SIGTERM, as when CI cancels a job. {STOPPED}", "yes"))
    table = "\n".join(f"| {code} | {what} | {again} |" for code, what, again in rows)
    head = "| code | meaning | may help to run it again as it is |\n|---|---|---|"
    return f"{MADE}# Exit codes\n\n{head}\n{table}\n"


if __name__ == "__main__":
    for place, text in pages().items():
        place.write_text(text, "utf-8")
        print(f"wrote {place}")
