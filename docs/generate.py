"""Writes the reference pages that are generated from the code: `make docs`. A test fails if one is stale."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from deployer.cli.app import app
from deployer.cli.deps import DURATIONS
from deployer.cli.failures import CODES, INTERNAL, INTERRUPTED, TERMINATED, USAGE, report_error
from deployer.config import json_schema
from deployer.errors import DIFFERENT, ConfigError, KdeployError
from docs.outputs import outputs_page, schemas
from docs.settings import configuration_page

FOLDER = Path(__file__).parent / "reference"
STOPPED = "Part of the work may be done: the message says how far the command got."
MADE = "<!-- Generated from the code by `make docs`. -->\n\n"
ERRORS = """
## Errors

A command that fails prints one error on stderr:

```text
error: invalid duration 'abc'
where: --timeout
hint: Write a duration such as 90s, 5m, 1h or 7d.
```

With `-o json` it prints one JSON object on stderr instead, and nothing on stdout:

```json
EXAMPLE
```

| key | value |
|---|---|
| `code` | The kind of error, from the table above. It does not change between versions. |
| `message` | What is wrong. |
| `where` | The file, field, flag or object, or null. |
| `hint` | What to do, or null. |
| `exit_code` | The exit code of the command. |
| `warnings` | The warnings before the error. Only if there are any. |
| `traceback` | The Python traceback. Only with `--debug`. |

With `-o json`, no progress is printed. If the command succeeds, its warnings are printed on stderr as text.

`status` and `doctor`, and `predict` for several files, print their result on stdout also if they fail, and
the error on stderr sums it up. `diff` prints no error with exit code 15.
"""


def pages() -> dict[Path, str]:
    """Return the text of every page that is generated from the code."""
    return {
        FOLDER / "commands.md": commands_page(),
        FOLDER / "exit-codes.md": exit_codes_page(),
        FOLDER / "kdeploy.schema.json": json.dumps(json_schema(), indent=2) + "\n",
        FOLDER / "configuration.md": configuration_page(),
        FOLDER / "outputs.md": outputs_page(),
        FOLDER / "outputs.schema.json": json.dumps(schemas(), indent=2) + "\n",
    }


def commands_page() -> str:
    """Describe every command with its arguments and options, and their values and defaults."""
    lines = [MADE + "# Commands\n"]
    lines.append("`--debug`, before or after a command, shows the traceback of an error.\n")
    for path, command in _walk(get_command(app), "kdeploy"):
        lines.append(f"## `{path}`\n\n{command.help or ''}\n")
        rows = [
            _row(one) for one in command.params if not one.name.endswith(("help", "_completion", "debug"))
        ]
        if rows:
            lines.append(
                "| option | values | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
            )
    return "\n".join(lines)


def _row(parameter: Any) -> str:
    """Return the row of one argument or option in a table."""
    argument = parameter.param_type_name == "argument"
    name = parameter.name.upper() if argument else ", ".join(parameter.opts + parameter.secondary_opts)
    values, default = {"path": "path", "int": "number"}.get(parameter.type.name, ""), parameter.default
    lowest, highest = getattr(parameter.type, "min", None), getattr(parameter.type, "max", None)
    meaning = re.fullmatch(r"(.*?)(?: Default: (.*)\.)?", parameter.help or "")
    assert meaning
    if choices := getattr(parameter.type, "choices", ()):
        values = ", ".join(f"`{value}`" for value in choices)
    elif parameter.metavar:
        values = f"`{parameter.metavar}`".replace("|", "\\|")
    if lowest is not None:
        values = f"{lowest} or more" if highest is None else f"{lowest} to {highest}"
    if getattr(parameter, "multiple", False):
        values += ", repeatable"
    if getattr(parameter, "is_flag", False):
        default = parameter.opts[0] if default else None
    shown = "required" if parameter.required else f"`{default}`" if default is not None else ""
    return f"| `{name}` | {values} | {meaning[2] or shown} | {meaning[1]} |"


def _walk(command: typer.core.TyperCommand, path: str) -> Iterator[tuple[str, typer.core.TyperCommand]]:
    inner = getattr(command, "commands", {})
    if not inner or getattr(command, "invoke_without_command", False):
        yield path, command
    for name, child in inner.items():
        yield from _walk(child, f"{path} {name}")


def exit_codes_page() -> str:
    """List every exit code with its code and meaning, and describe the form of an error."""
    rows = [
        (0, "", "Success.", False),
        (INTERNAL, CODES[INTERNAL], "Unexpected error: a bug in kdeploy.", False),
        (USAGE, CODES[USAGE], "Wrong usage, such as an unknown flag.", False),
        (DIFFERENT, "", "Not an error: `kdeploy diff` found changes.", False),
    ]
    rows += (
        (kind.exit_code, kind.code, " ".join((kind.__doc__ or "").split()), kind.retryable)
        for kind in _kinds(KdeployError)
    )
    rows.sort(key=lambda row: row[0])
    rows.append((INTERRUPTED, CODES[INTERRUPTED], f"Interrupted by Ctrl-C. {STOPPED}", True))
    rows.append((TERMINATED, CODES[TERMINATED], f"Terminated by SIGTERM, as by CI. {STOPPED}", True))
    table = "\n".join(
        f"| {number} | {f'`{code}`' if code else ''} | {meaning} | {'yes' if retryable else ''} |"
        for number, code, meaning, retryable in rows
    )
    head = "| exit code | code | meaning | a retry can help |\n|---|---|---|---|"
    example = report_error(ConfigError("invalid duration 'abc'", where="--timeout", hint=DURATIONS))
    shown = json.dumps({key: value for key, value in example._asdict().items() if key != "traceback"})
    return f"{MADE}# Exit codes\n\n{head}\n{table}\n{ERRORS.replace('EXAMPLE', shown)}"


def _kinds(kind: type[KdeployError]) -> Iterator[type[KdeployError]]:
    """Yield the kinds of errors that have their own code."""
    for inner in kind.__subclasses__():
        if inner.__module__ == KdeployError.__module__:
            yield inner
            yield from _kinds(inner)


if __name__ == "__main__":
    for place, text in pages().items():
        place.write_text(text, "utf-8")
        print(f"wrote {place}")
