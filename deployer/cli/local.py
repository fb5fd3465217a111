"""`kdeploy local`: the one-node target itself."""

import typer
from typing_extensions import Unpack

from deployer.cli import deps, printers
from deployer.cli.options import OutputFormat, WhereLocal, spelled_out
from deployer.cli.terminal import show, tell

app = typer.Typer(
    no_args_is_help=True, help="Manage the one-node target on this machine: start, stop, status, logs."
)


@app.command()
@spelled_out
def start(**where: Unpack[WhereLocal]) -> None:
    """Start it and restore its services; the first rollout does so, too."""
    from deployer.config import check_root

    work = deps.workspace(**where)
    node = work.node
    check_root(work.settings.root)
    node.start()
    tell(f"the ingress listens on {node.info().ingress}")


@app.command()
@spelled_out
def stop(**where: Unpack[WhereLocal]) -> None:
    """Stop it and everything that it started; `start` restores its services."""
    tell("stopped" if deps.workspace(**where).node.stop() else "nothing was running")


@app.command()
@spelled_out
def status(output: OutputFormat = "table", **where: Unpack[WhereLocal]) -> None:
    """Show the supervisor, its ingress and its TorchServes."""
    printers.print_local(deps.workspace(**where).node.info(), output)


@app.command()
@spelled_out
def logs(**where: Unpack[WhereLocal]) -> None:
    """Print the supervisor's log."""
    for line in deps.workspace(**where).node.supervisor_log():
        show(line)
