"""Bringing a release to serve, and what was brought to serve before: `kdeploy rollout`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from typing_extensions import Unpack

from deployer.cli import deps, printers, reports
from deployer.cli.options import (
    Canary,
    DryRun,
    ForceConflicts,
    Output,
    OutputFormat,
    ReleaseId,
    ServiceName,
    Strict,
    Where,
    WhereStored,
    spelled_out,
)

if TYPE_CHECKING:
    from deployer.pipeline import Pipeline
    from deployer.release import Traffic

app = typer.Typer()


@app.callback(invoke_without_command=True)
@spelled_out
def rollout(
    command: typer.Context,
    release: ReleaseId = None,
    canary: Canary = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it serves.")] = True,
    timeout: Annotated[str, typer.Option("--timeout", help="How long to wait: 90s, 5m, 1h.")] = "5m",
    wait_window: Annotated[
        str | None, typer.Option("--wait-window", help="On a cluster: how long Ready must last. [2s]")
    ] = None,
    history_limit: Annotated[
        int | None,
        typer.Option("--history-limit", min=1, help="On a cluster: how many rollouts it remembers. [20]"),
    ] = None,
    force_conflicts: ForceConflicts = False,
    dry_run: Annotated[
        DryRun | None,
        typer.Option(
            "--dry-run",
            help="Change nothing, say what would be applied; server: have the API server check it, too.",
        ),
    ] = None,
    strict: Strict = False,
    output: OutputFormat = Output.NAME,
    **where: Unpack[WhereStored],
) -> None:
    """Bring a release to serve, pushing it first where needed, and wait until it does."""
    if command.invoked_subcommand:
        _refuse_options(command)
        return
    from deployer.release import Traffic

    seconds = deps.duration(timeout, "--timeout") if wait else None
    loaded = deps.settings(wait_window=wait_window, history_limit=history_limit, **where)
    traffic = Traffic(100 if canary is None else canary)
    with printers.open_viewer() as viewer:
        pipe = deps.pipeline(
            loaded,
            target=where.get("target"),
            emit=viewer,
            strict=strict,
            force_conflicts=force_conflicts,
            dry_run=dry_run is DryRun.SERVER,
        )
        if dry_run:
            _try(pipe, release, traffic, on_target=dry_run is DryRun.SERVER, output=output)
            return
        done = pipe.rollout(release, traffic, timeout=seconds)
    service = pipe.status() if output in (Output.JSON, Output.YAML) else None
    printers.print_rows(output, ["release"], [[done.id]], service, [done.id])


def _try(pipe: Pipeline, release: str | None, traffic: Traffic, *, on_target: bool, output: Output) -> None:
    """Decide everything, and let a target that was opened to change nothing check it."""
    documents = pipe.render(pipe.release(release), traffic)
    pipe.check(pipe.with_secret(documents))
    if on_target:
        pipe.target.apply(documents)
    rows = [(d["kind"], d["metadata"]["name"]) for d in documents]
    printers.print_rows(output, ["kind", "name"], rows, documents, [f"{k}/{n}" for k, n in rows])


def _refuse_options(command: typer.Context) -> None:
    """Refuse what stands before a sub-command's name: it would be ignored."""
    for parameter in command.command.params:
        source = command.get_parameter_source(parameter.name or "")
        if source and source.name == "COMMANDLINE":
            what = f"options of {command.invoked_subcommand} come after its name"
            raise typer.BadParameter(what, param_hint=parameter.opts[0])


@app.command()
@spelled_out
def history(
    name: ServiceName = None,
    output: OutputFormat = Output.TABLE,
    **where: Unpack[Where],
) -> None:
    """List what was rolled out to a service, the oldest first: when, by whom, and how it ended."""
    loaded = deps.settings(anywhere=True, **where)
    place = deps.open_target(loaded, where.get("target"))
    reports.print_history(place.history(deps.reference(loaded, place, name)), output)
