"""The commands init, config and doctor."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from deployer.cli import deps, printers
from deployer.cli.options import (
    ConfigFile,
    OutputFormat,
    ServiceOption,
    Sets,
    Unpack,
    Where,
    spelled_out,
)
from deployer.cli.terminal import tell


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the project.")] = Path(),
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the model. Default: the name of the folder.")
    ] = None,
    serialized_file: Annotated[
        str, typer.Option("--serialized-file", help="File with your trained weights, relative to the folder.")
    ] = "model.pt",
    model_file: Annotated[
        str | None,
        typer.Option("--model-file", help="Python file with the class of the network, for a state dict."),
    ] = None,
    handler: Annotated[
        str, typer.Option("--handler", help="File with your handler. Created if it does not exist.")
    ] = "handler.py",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing kdeploy.toml.")] = False,
) -> None:
    """Create a project: a kdeploy.toml and a handler."""
    from deployer.scaffold import suggest_name, write_project

    written = write_project(
        folder,
        name or suggest_name(folder),
        handler=handler,
        serialized_file=serialized_file,
        model_file=model_file,
        force=force,
    )
    for path in written:
        tell(f"wrote {path}")
    needed = {"weights": serialized_file, "network": model_file}
    missing = [
        f"your {what} to {folder / name}"
        for what, name in needed.items()
        if name and not (folder / name).exists()
    ]
    first = f"copy {' and '.join(missing)}, then " if missing else ""
    change = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    tell(f"next: {first}run `{change}kdeploy rollout`")


def config(
    config: ConfigFile = None,
    sets: Sets = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of kdeploy.toml.")] = False,
    output: OutputFormat = "table",
) -> None:
    """Show all settings, with their values and sources."""
    if schema:
        from deployer.config import json_schema

        printers.print_json(json_schema())
        return
    rows = list(deps.workspace(config=config, sets=sets).settings.values())
    data = {key: {"value": value, "source": source} for key, value, source in rows}
    shown = [(key, printers.value_text(value), source) for key, value, source in rows]
    printers.print_rows(output, ["key", "value", "source"], shown, data, [key for key, _, _ in rows])


@spelled_out
def doctor(service: ServiceOption = None, output: OutputFormat = "table", **where: Unpack[Where]) -> None:
    """Check that a target is ready for a rollout. Every problem has a hint."""
    from deployer.errors import IntegrityError, KdeployError, StoreError
    from deployer.findings import failure

    if machine := deps.this_machine(**where):
        printers.print_findings(machine.services.examine(), output)
        return
    work = deps.workspace(service=service, **where)
    findings = list(work.target.services.examine())
    if not any(finding.status == "failure" for finding in findings):
        try:
            rollouts = work.rollouts
            decision = rollouts.decide(check=True, thorough=True)
            rollouts.is_stored(decision.release)
            findings += decision.findings
        except KdeployError as error:
            name = "model store" if isinstance(error, StoreError | IntegrityError) else "release"
            findings.append(failure(name, str(error.what), error.where or "", error.hint or ""))
        else:
            if not any(finding.status == "failure" for finding in findings):
                findings.append(rollouts.check_admission(decision.bundle))
    printers.print_findings(findings, output)
