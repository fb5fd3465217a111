"""The app: maps each command to its function."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated

import typer

from deployer import __version__
from deployer.cli import dev, local, models, predict, project, releases, rollouts, services
from deployer.cli.terminal import show

_HELP = "Deploy trained PyTorch models to KServe, or to TorchServe on this machine."

app = typer.Typer(
    name="kdeploy",
    help=_HELP,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        show(f"kdeploy {__version__}")
        raise typer.Exit


@app.callback(help=_HELP)
def root(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Also: KDEPLOY_DEBUG=1.")
    ] = False,
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Handle the options before a command."""
    if debug:
        os.environ["KDEPLOY_DEBUG"] = "1"


_COMMANDS: dict[str, Callable[..., None]] = {
    "init": project.init,
    "adopt": project.adopt,
    "config": project.config,
    "doctor": project.doctor,
    "dev": dev.dev,
    "push": releases.push,
    "plan": releases.plan,
    "render": releases.render,
    "diff": services.diff,
    "predict": predict.predict,
    "status": services.status,
    "list": services.list_services,
    "logs": services.logs,
    "metrics": services.metrics,
    "delete": services.delete,
    "releases": releases.releases,
    "verify": releases.verify,
    "copy": releases.copy,
    "prune": releases.prune,
    "archive": releases.archive,
}
for name, command in _COMMANDS.items():
    app.command(name=name)(command)
app.add_typer(rollouts.app, name="rollout")
app.add_typer(local.app, name="local")
app.add_typer(models.app, name="models")
