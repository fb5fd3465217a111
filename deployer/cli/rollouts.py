"""`kdeploy rollout`: rolls out a release, and lists earlier rollouts."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployer.cli import deps, next_steps, printers, reports
from deployer.cli.options import (
    Canary,
    DryRun,
    ForceConflicts,
    OutputFormat,
    Protocol,
    ReleaseId,
    ServiceName,
    StrategyName,
    Strict,
    Unpack,
    Where,
    WhereProject,
    WhereStored,
    spelled_out,
)
from deployer.cli.terminal import tell
from deployer.errors import ConfigError

if TYPE_CHECKING:
    from deployer.workspace import Workspace

app = typer.Typer()


@app.callback(invoke_without_command=True)
@spelled_out
def rollout(
    command: typer.Context,
    release: ReleaseId = None,
    canary: Canary = 100,
    strategy: StrategyName = None,
    rollback_on_failure: Annotated[
        bool,
        typer.Option(
            "--rollback-on-failure",
            help="If the release does not become ready, roll back to the last ready release.",
        ),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the release is ready.")] = True,
    timeout: Annotated[
        str, typer.Option("--timeout", help="Maximum time to wait, such as 90s, 5m or 1h.")
    ] = "5m",
    wait_window: Annotated[
        str | None,
        typer.Option(
            "--wait-window",
            help="How long the release must stay ready (clusters only). Default: wait-window of the target.",
        ),
    ] = None,
    history_limit: Annotated[
        int | None,
        typer.Option(
            "--history-limit",
            min=1,
            metavar="N",
            help="Length of the history, in rollouts (clusters only). Default: history-limit of the target.",
        ),
    ] = None,
    force_conflicts: ForceConflicts = False,
    dry_run: Annotated[
        DryRun | None,
        typer.Option(
            "--dry-run",
            help="Print the documents without applying them; server: the API server validates them first.",
        ),
    ] = None,
    strict: Strict = False,
    output: OutputFormat = "name",
    **where: Unpack[WhereProject],
) -> None:
    """Roll out a release and wait until it is ready. Pushes the release first if needed."""
    if command.invoked_subcommand:
        _refuse_options(command)
        return
    if rollback_on_failure and not wait:
        raise ConfigError(
            "--rollback-on-failure and --no-wait cannot be combined",
            where="--rollback-on-failure",
            hint="Remove one of the two.",
        )
    if release and where.get("mar"):
        raise ConfigError(
            "--release and --mar cannot be combined", where="--mar", hint="Remove one of the two."
        )
    from deployer import queries
    from deployer.rollout.plan import Strategy

    seconds = deps.duration(timeout, "--timeout") if wait else None
    chosen = Strategy(strategy) if strategy else None
    with printers.open_viewer() as viewer:
        work = deps.workspace(
            viewer,
            strict=strict,
            force_conflicts=force_conflicts,
            wait_window=wait_window,
            history_limit=history_limit,
            **where,
        )
        if dry_run:
            decision = work.rollouts.decide(
                release, percent=canary, strategy=chosen, check=True, preview=dry_run == "server"
            )
            work.rollouts.report(decision)
            printers.print_documents(decision.bundle.documents, output)
            return
        done = work.rollout(
            release, percent=canary, strategy=chosen, timeout=seconds, rollback=rollback_on_failure
        )
    live = None
    if output in ("json", "yaml"):
        live = queries.inspect(work.target, work.reference())
    if live and output == "yaml":
        printers.print_yaml(live.document)
    else:
        printers.print_rows(output, ["release"], [[done.id]], live and live.status, [done.id])
    protocol = done.serving.protocol_version
    if output in ("table", "name") and sys.stdout.isatty() and protocol != "grpc-v2":
        _tell_next(work, protocol if wait else None, **where)


def _tell_next(
    work: "Workspace",
    protocol: Protocol | None,
    service: str | None = None,
    mar: Path | None = None,  # noqa: ARG001 - the next commands need no archive
    **where: Unpack[WhereStored],
) -> None:
    if protocol is None:
        status = next_steps.command("status", *([service] if service else []), **where)
        next_steps.tell_next(f"run {status} to see when the release is ready")
        return
    next_steps.print_request(work.target, work.chosen[1], work.reference(), protocol, tell)
    next_steps.tell_predict(service, **where)


def _refuse_options(command: typer.Context) -> None:
    """Reject options before the name of a subcommand: they would be ignored."""
    for parameter in command.command.params:
        source = command.get_parameter_source(parameter.name or "")
        if source and source.name == "COMMANDLINE":
            what = f"options of {command.invoked_subcommand} must follow its name"
            raise typer.BadParameter(what, param_hint=parameter.opts[0])


@app.command()
@spelled_out
def history(name: ServiceName = None, output: OutputFormat = "table", **where: Unpack[Where]) -> None:
    """List the rollouts of a service. The oldest is first."""
    from deployer import queries

    target, reference = deps.locate(name, **where)
    entries = queries.read_history(target, reference)
    reports.print_history(entries, output)
    if not entries:
        tell(f"no rollouts found for {reference}")
