"""Commands about the project and the machine: init, config, doctor."""

from pathlib import Path
from typing import Annotated

import typer
from typing_extensions import Unpack

from deployer.cli import deps, printers
from deployer.cli.options import ConfigFile, OutputFormat, Sets, Where, spelled_out
from deployer.cli.terminal import tell


def init(
    name: Annotated[str, typer.Argument(help="The model's name.")] = "my-model",
    folder: Annotated[Path, typer.Option("--folder", help="Folder to write to.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> None:
    """Write a first kdeploy.toml and handler."""
    from deployer.scaffold import write_project

    for path in write_project(folder, name, force=force):
        tell(f"wrote {path}")
    tell("next: put your weights there, fill in handler.py, and run `kdeploy rollout`")


def config(
    config: ConfigFile = None,
    sets: Sets = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of kdeploy.toml, for editors.")
    ] = False,
    output: OutputFormat = "table",
) -> None:
    """Show every setting, its value and its source."""
    if schema:
        from deployer.config import json_schema

        printers.print_json(json_schema())
        return
    rows = list(deps.workspace(config=config, sets=sets).settings.values())
    data = {key: {"value": value, "source": source} for key, value, source in rows}
    shown = [(key, printers.value_text(value), source) for key, value, source in rows]
    printers.print_rows(output, ["key", "value", "source"], shown, data, [key for key, _, _ in rows])


@spelled_out
def doctor(output: OutputFormat = "table", **where: Unpack[Where]) -> None:
    """Check whether a target is ready for a rollout, and say how to fix what is missing."""
    from deployer.errors import IntegrityError, KdeployError, StoreError
    from deployer.findings import failure

    if machine := deps.this_machine(**where):
        printers.print_findings(machine.services.examine(), output)
        return
    work = deps.workspace(**where)
    findings = list(work.target.services.examine())
    if not any(finding.status == "failure" for finding in findings):
        try:
            rollouts = work.rollouts(printers.Viewer())
            decision = rollouts.decide(check=True, thorough=True)
            rollouts.is_stored(decision.release)
            findings += decision.findings
        except KdeployError as error:
            name = "model store" if isinstance(error, StoreError | IntegrityError) else "release"
            findings.append(failure(name, str(error.what), error.where or "", error.hint or ""))
        else:
            if not any(finding.status == "failure" for finding in findings):
                findings.append(rollouts.admit(decision))
    printers.print_findings(findings, output)
