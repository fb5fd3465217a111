"""The commands diff, status, list, logs and delete."""

from typing import TYPE_CHECKING, Annotated

import typer

from deployer.cli import deps, next_steps, printers, reports
from deployer.cli.options import (
    Canary,
    ForceConflicts,
    OutputFormat,
    ReleaseId,
    ServiceName,
    Strict,
    Unpack,
    Where,
    WhereProject,
    Yes,
    spelled_out,
)
from deployer.cli.terminal import UnfollowedError, show, tell, warn
from deployer.errors import DIFFERENT, ConfigError, KdeployError

if TYPE_CHECKING:
    from deployer.journal import Entry


@spelled_out
def diff(
    release: ReleaseId = None,
    canary: Canary = 100,
    force_conflicts: ForceConflicts = False,
    strict: Strict = False,
    output: OutputFormat = "table",
    **where: Unpack[WhereProject],
) -> None:
    """Show what a rollout would change on the target. The exit code is 15 if there are changes."""
    rollouts = deps.workspace(strict=strict, force_conflicts=force_conflicts, **where).rollouts
    decision = rollouts.decide(release, percent=canary, preview=True)
    rollouts.report(decision)
    reports.print_differences(decision.changes, output)
    if decision.changes:
        raise typer.Exit(DIFFERENT)


@spelled_out
def status(name: ServiceName = None, output: OutputFormat = "table", **where: Unpack[Where]) -> None:
    """Show the state of a service. The exit code is 8 if it has failed or is stopped."""
    from deployer import queries

    work = deps.workspace(allow_no_project=True, **where)
    target, reference = work.target, work.reference(name)
    live = queries.inspect(target, reference)
    entries: list[Entry] = []
    try:
        entries = queries.read_journal(target, live)
    except KdeployError as error:  # the user can read services only
        warn(f"cannot read the journal, so drift is unknown: {error}")
    reports.print_status(live, entries, queries.find_drift(live, entries), output)
    if output == "table" and live.status.serving:
        protocol = live.document["spec"]["predictor"].get("model", {}).get("protocolVersion", "v1")
        if protocol != "grpc-v2":  # curl cannot send it
            next_steps.print_request(target, work.chosen[1], reference, protocol, show)
    if live.status.phase.value in ("Failed", "Stopped"):
        raise reports.failure_of(live.status)
    if output == "table" and live.status.serving:
        next_steps.tell_predict(name, **where)
    elif output == "table":
        logs_ = next_steps.command("logs", *([name] if name else []), **where)
        next_steps.tell_next(f"run {logs_} to see the logs of its containers")


@spelled_out
def list_services(
    everywhere: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="List services in all namespaces.")
    ] = False,
    output: OutputFormat = "table",
    **where: Unpack[Where],
) -> None:
    """List the services of a target."""
    services = deps.workspace(allow_no_project=True, **where).target.services
    printers.print_services(services.list_all(None if everywhere else services.namespace), output)


@spelled_out
def logs(
    name: ServiceName = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stream new lines.")] = False,
    previous: Annotated[
        bool, typer.Option("--previous", "-p", help="Print the logs of the previous container instance.")
    ] = False,
    tail: Annotated[
        int | None,
        typer.Option(
            "--tail", min=0, metavar="N", help="Number of last lines of each container. Default: all lines."
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="DURATION", help="Print only newer lines, such as of the last 90s, 5m or 1h."
        ),
    ] = None,
    **where: Unpack[Where],
) -> None:
    """Print the logs of the containers of a service, without the requests of readiness probes."""
    from deployer.targets.log_lines import Part

    if follow and previous:
        raise ConfigError(
            "--follow and --previous cannot be combined", where="--follow", hint="Remove one of the two."
        )
    seconds = None if since is None else deps.duration(since, "--since", longest=deps.DECADE, zero=False)
    target, reference = deps.locate(name, **where)
    silent = True
    part = Part(tail=tail, since=seconds)
    try:
        for line in target.reach.logs(reference, follow=follow, previous=previous, part=part):
            show(line)
            silent = False
    except KeyboardInterrupt as error:
        raise UnfollowedError if follow else error from error
    if silent:
        tell(f"no logs found for {reference}")


@spelled_out
def metrics(
    name: ServiceName = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also print the metrics of the server and the machine.")
    ] = False,
    output: OutputFormat = "table",
    **where: Unpack[Where],
) -> None:
    """Print the metrics that a service's model reports. If there are several pods, it reads one of them."""
    from deployer.predict.metrics import read_metrics
    from deployer.targets.protocols import Via

    target, reference = deps.locate(name, **where)
    found = read_metrics(target.reach.endpoint(reference, Via.METRICS))
    found = [metric for metric in found if everything or metric.model is not None]
    if not found:
        tell(f"{reference.name} has reported nothing yet: send a request, or add `--all`")
    rows = [
        (
            metric.name,
            metric.kind,
            ", ".join(f"{k}={v}" for k, v in metric.labels.items()),
            f"{metric.value:g}",
        )
        for metric in found
    ]
    printers.print_rows(output, ["name", "kind", "labels", "value"], rows, found, [one.name for one in found])


@spelled_out
def delete(name: ServiceName = None, yes: Yes = False, **where: Unpack[Where]) -> None:
    """Delete a service. Its releases stay in the model store."""
    target, reference = deps.locate(name, **where)
    if not yes:
        deps.confirm(f"delete service {reference}")
    held = target.services.delete(reference)
    tell(f"service {reference} not found" if held is None else f"deleted service {reference}")
    if held:
        tell(f"still terminating: {', '.join(held)}")
