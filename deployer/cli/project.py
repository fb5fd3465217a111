"""The commands init, config and doctor."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from deployer.cli.terminal import show, tell, warn

if TYPE_CHECKING:
    from deployer.adopt.project import Written

FromMar = Annotated[
    Path | None,
    typer.Option("--from-mar", metavar="FILE", help="Model archive to unpack: .mar, .tar.gz or its folder."),
]
Properties = Annotated[
    Path | None,
    typer.Option(
        "--properties", metavar="FILE", help="With --from-mar: the config.properties of its TorchServe."
    ),
]


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
        str,
        typer.Option(
            "--handler",
            help="File with your handler, created if it does not exist; or a handler of TorchServe.",
        ),
    ] = "handler.py",
    from_mar: FromMar = None,
    properties: Properties = None,
    isvc: Annotated[
        Path | None,
        typer.Option(
            "--isvc", metavar="FILE", help="With --from-mar: the YAML of the InferenceService that serves it."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing kdeploy.toml.")] = False,
) -> None:
    """Create a project: a kdeploy.toml and a handler, or from a model archive that exists."""
    if from_mar or properties or isvc:
        _init_from_mar(folder, name, from_mar, properties, isvc, force=force)
        return
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


def _init_from_mar(
    folder: Path,
    name: str | None,
    mar: Path | None,
    properties: Path | None,
    isvc: Path | None,
    *,
    force: bool,
) -> None:
    from deployer.adopt.project import read_yaml_service, write_project
    from deployer.errors import ConfigError

    if not mar:
        option = "--properties" if properties else "--isvc"
        raise ConfigError(
            f"{option} needs a model archive",
            where=option,
            hint="Add `--from-mar FILE`. For a service of a cluster, run `kdeploy adopt NAME`.",
        )
    service = read_yaml_service(isvc) if isvc else None
    written = write_project(folder, mar=mar, properties=properties, service=service, name=name, force=force)
    rows = [(line.field, line.fate, line.becomes) for line in written.lines]
    if rows:
        printers.print_table(["field", "", "where or why"], rows, tell)
    _tell_written(written)
    change = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    target = " --target local --store model-store" if service else ""
    tell(f"next: run `{change}kdeploy rollout{target}`")


def _tell_written(written: "Written") -> None:
    for path in written.paths:
        tell(f"wrote {path}")
    if written.fault:
        fault = written.fault
        warn(f"kdeploy.toml needs a correction: {fault.what} ({fault.where}). {fault.hint or ''}".strip())


@spelled_out
def adopt(
    name: Annotated[str, typer.Argument(help="Name of the InferenceService.")],
    from_mar: FromMar = None,
    properties: Properties = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the kdeploy.toml without writing it.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing kdeploy.toml.")] = False,
    output: OutputFormat = "table",
    **where: Unpack[Where],
) -> None:
    """Write the kdeploy.toml for a service that others created. Changes nothing on the cluster."""
    from deployer.adopt.project import write_project
    from deployer.errors import ConfigError
    from deployer.queries import inspect

    work = deps.workspace(allow_no_project=True, **where)
    if work.chosen[1].__struct_config__.tag != "kserve":
        raise ConfigError("adopt needs a cluster", where="--target", hint="Choose a target of kind kserve.")
    service = inspect(work.target, work.reference(name)).document
    written = write_project(
        Path(), mar=from_mar, properties=properties, service=service, force=force, dry_run=dry_run
    )
    if dry_run:
        show(written.text)
        return
    rows = [(line.field, line.fate, line.becomes) for line in written.lines]
    fields = [line.field for line in written.lines]
    printers.print_rows(output, ["field", "fate", "where or why"], rows, written.lines, fields)
    _tell_written(written)
    first = "" if from_mar else "put the model's files into `[model]`, "
    tell(
        f"next: {first}run `kdeploy diff --force-conflicts` to see the changes, "
        "then `kdeploy rollout --force-conflicts`"
    )


def config(
    config: ConfigFile = None,
    sets: Sets = None,
    service: ServiceOption = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of kdeploy.toml.")] = False,
    output: OutputFormat = "table",
) -> None:
    """Show all settings, with their values and sources."""
    if schema:
        from deployer.config import json_schema

        printers.print_json(json_schema())
        return
    rows = list(deps.workspace(config=config, sets=sets, service=service).settings.values())
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
            if not rollouts.is_stored(decision.release):
                work.store.check_writable()
            findings += decision.findings
        except KdeployError as error:
            name = "model store" if isinstance(error, StoreError | IntegrityError) else "release"
            findings.append(failure(name, str(error.what), error.where or "", error.hint or ""))
        else:
            if not any(finding.status == "failure" for finding in findings):
                findings.append(rollouts.check_admission(decision.bundle))
    printers.print_findings(findings, output)
