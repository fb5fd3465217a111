"""The commands diff, predict, status, list, logs and delete."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployer.cli import deps, next_steps, printers, reports
from deployer.cli.headers import read_headers
from deployer.cli.options import (
    Canary,
    ForceConflicts,
    OutputFormat,
    Protocol,
    ReleaseId,
    ServiceName,
    ServiceOption,
    Strict,
    Unpack,
    Where,
    WhereStored,
    Yes,
    spelled_out,
)
from deployer.cli.terminal import show, tell, warn
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
    **where: Unpack[WhereStored],
) -> None:
    """Show what a rollout would change on the target. The exit code is 15 if there are changes."""
    rollouts = deps.workspace(strict=strict, force_conflicts=force_conflicts, **where).rollouts
    decision = rollouts.decide(release, percent=canary, preview=True)
    rollouts.report(decision)
    reports.print_differences(decision.changes, output)
    if decision.changes:
        raise typer.Exit(DIFFERENT)


@spelled_out
def predict(
    files: Annotated[
        list[Path],
        typer.Argument(help="Files to send: images, JSON requests, or other input of the handler."),
    ],
    service: ServiceOption = None,
    kserve: Annotated[
        bool,
        typer.Option(
            "--kserve", help="Send requests through the ingress. For clusters, this is the default."
        ),
    ] = False,
    ingress: Annotated[
        str | None,
        typer.Option(
            "--ingress",
            envvar="KDEPLOY_INGRESS",
            metavar="URL|port-forward",
            help="URL of the ingress, or port-forward (clusters only). Default: detected automatically.",
        ),
    ] = None,
    protocol: Annotated[
        Protocol | None,
        typer.Option(
            "--protocol",
            help="Protocol of the requests. Default: v1 through the ingress, plain to TorchServe.",
        ),
    ] = None,
    resize: Annotated[
        bool,
        typer.Option("--resize", help="Shrink images that exceed the maximum request size."),
    ] = False,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", metavar="NAME:VALUE|@FILE", help="Send a header, or the headers in a file."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="@FILE|-",
            help="Send the bearer token in a file or stdin. Default: KDEPLOY_TOKEN (ingress only).",
        ),
    ] = None,
    cookie: Annotated[
        list[str] | None,
        typer.Option(
            "--cookie",
            metavar="[NAME=]@FILE",
            help="Send the cookie in a file. Default: KDEPLOY_COOKIE (ingress only).",
        ),
    ] = None,
    authority: Annotated[
        Path | None,
        typer.Option(
            "--certificate-authority",
            metavar="FILE",
            help="PEM file with the certificates to trust. Default: SSL_CERT_FILE, or the system's.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        str, typer.Option("--timeout", help="Maximum time for each request, such as 90s or 5m.")
    ] = "60s",
    output: OutputFormat = "table",
    **where: Unpack[Where],
) -> None:
    """Send a prediction request for each file. Without --kserve, a local TorchServe is called directly."""
    from deployer.predict import Client
    from deployer.targets.protocols import Via

    seconds = deps.duration(timeout, "--timeout", zero=False)
    work = deps.workspace(ingress=ingress, allow_no_project=True, **where)
    kserve = kserve or work.chosen[1].__struct_config__.tag == "kserve"
    reference = work.reference(service)
    with Client(
        work.target.reach.endpoint(reference, Via.INGRESS if kserve else Via.DIRECT),
        reference.name,
        timeout=seconds,
        headers=read_headers(header or [], token, cookie or [], os.environ if kserve else {}),
        max_request_size=work.settings.config.serving.max_request_size,
        resize=resize,
        authority=authority,
    ) as client:
        answers = client.predict(files, protocol or ("v1" if kserve else "plain"))
        printers.print_answers(answers, output)


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
    **where: Unpack[Where],
) -> None:
    """Print the logs of the containers of a service."""
    if follow and previous:
        raise ConfigError(
            "--follow and --previous cannot be combined", where="--follow", hint="Remove one of the two."
        )
    target, reference = deps.locate(name, **where)
    silent = True
    for line in target.reach.logs(reference, follow=follow, previous=previous):
        show(line)
        silent = False
    if silent:
        tell(f"no logs found for {reference}")


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
