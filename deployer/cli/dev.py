"""The command dev."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployer.cli import deps, next_steps, predictions
from deployer.cli.options import Protocol, Unpack, WhereLocal, spelled_out
from deployer.cli.terminal import show, tell, warn
from deployer.errors import KdeployError

if TYPE_CHECKING:
    from deployer.config import LocalTarget, Settings
    from deployer.events import DevEvent, Event
    from deployer.targets.protocols import Endpoint

_NAMES = 3  # of changed files, in a message


@spelled_out
def dev(
    predict: Annotated[
        list[Path] | None,
        typer.Option(
            "--predict", metavar="FILE", help="Send a prediction request for this file after each load."
        ),
    ] = None,
    protocol: Annotated[
        Protocol | None,
        typer.Option("--protocol", help="Protocol of the prediction requests, as of `kdeploy predict`."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=0, max=65535, help="Port of the ingress; 0: any free one. Default: ingress-port."
        ),
    ] = None,
    **where: Unpack[WhereLocal],
) -> None:
    """Serve the working folder on this machine, and load it again whenever a file is saved.

    Shows what the handler prints. Stores nothing and changes no service. Stop it with Ctrl-C.
    """
    from deployer.config import check_root
    from deployer.dev import WorkingFolder
    from deployer.observed import Reference
    from deployer.targets.local.dev import Session
    from deployer.targets.local.dev_endpoint import FOLDER

    def load() -> "Settings":
        return deps.workspace(**where).settings

    settings = load()
    check_root(settings.root)
    target = _local_target(settings, where.get("target"))
    state = settings.root / target.state / FOLDER
    model = settings.config.model.name
    reference = Reference(target.namespace, settings.config.service.name or model)
    files = predict or []

    def opened(endpoint: "Endpoint") -> None:
        tell(f"serving {reference} on {endpoint.url}, with the header Host: {endpoint.host}:")
        for line in next_steps.request_lines(endpoint, target, model, "v2" if protocol == "v2" else "v1"):
            tell(f"  {line}")

    def loaded(endpoint: "Endpoint") -> None:
        if files:
            _predict(endpoint, model, files, protocol, settings)

    working = WorkingFolder(load, state / "models" / model, target.namespace, _print)

    def emit(event: "DevEvent") -> None:
        _print(event, working.shown)

    Session(
        state, reference, model, look=working.look, failure=working.failure, emit=emit, loaded=loaded
    ).run(target.ingress_host, target.ingress_port if port is None else port, opened)
    tell("stopped")


def _local_target(settings: "Settings", named: str | None) -> "LocalTarget":
    """Return the local target with a name; by default the first one, or one with default settings."""
    from deployer.config import LocalTarget
    from deployer.errors import ConfigError
    from deployer.workspace import choose_target

    if named is None:
        found = (one for one in settings.config.targets.values() if isinstance(one, LocalTarget))
        return next(found, LocalTarget())
    name, target = choose_target(settings, named)
    if not isinstance(target, LocalTarget):
        raise ConfigError(
            "`kdeploy dev` needs a local target",
            where=f"targets.{name}",
            hint='Choose a target of `kind = "local"` with `--target`, or leave `--target` out.',
        )
    return target


def _predict(
    endpoint: "Endpoint", name: str, files: list[Path], protocol: Protocol | None, settings: "Settings"
) -> None:
    """Send a request for each file, and print the answers or the first error."""
    from deployer.predict import Client

    serving = settings.config.serving
    seconds = serving.response_timeout + 10.0
    try:
        with Client(endpoint, name, timeout=seconds, max_request_size=serving.max_request_size) as client:
            answers = client.predict(files, protocol or "plain", follow=protocol is None)
            predictions.print_answers(answers, "table")
    except KdeployError as error:
        _tell_error(error.what, error.where)  # the log above has the traceback


def _print(event: "DevEvent | Event", shown: Callable[[str], str] = str) -> None:
    from deployer import events

    if isinstance(event, events.Logged):
        show(shown(event.line))
    elif isinstance(event, events.Warned | events.Noted):
        warn(event.message, label="warning: " if isinstance(event, events.Warned) else "")
    elif isinstance(event, events.Loading):
        tell(_loading_text(event.names, event.restart))
    elif isinstance(event, events.Loaded):
        tell(f"ready after {event.seconds:.1f} s")
    elif isinstance(event, events.LoadFailed):
        _tell_error(shown(event.what), event.where, event.hint)
        tell("waiting for the next change")


def _loading_text(names: Sequence[str], restart: bool) -> str:
    what = "Starting TorchServe" if restart else "Loading the model"
    if not names:
        return what
    listed = ", ".join(names[:_NAMES]) + (" ..." if len(names) > _NAMES else "")
    return f"{what}: {listed} changed"


def _tell_error(what: str, where: str | None, hint: str | None = None) -> None:
    tell(f"error: {what}")
    if where:
        tell(f"where: {where}")
    if hint:
        tell(f"hint: {hint}")
