"""`kdeploy local`: manages the local target."""

import typer

from deployer.cli import deps, printers
from deployer.cli.options import OutputFormat, Unpack, WhereLocal, spelled_out
from deployer.cli.terminal import show, tell

app = typer.Typer(no_args_is_help=True, help="Manage the local target on this machine.")


@app.command()
@spelled_out
def start(**where: Unpack[WhereLocal]) -> None:
    """Start the local target and restore its services. A rollout starts it automatically."""
    from deployer.config import check_root

    work = deps.workspace(**where)
    node = work.node
    check_root(work.settings.root)
    node.start()
    tell(f"started: the ingress listens on {node.info().ingress}")


@app.command()
@spelled_out
def stop(**where: Unpack[WhereLocal]) -> None:
    """Stop the local target and its TorchServe processes. `kdeploy local start` restores its services."""
    tell("stopped" if deps.workspace(**where).node.stop() else "the local target is not running")


@app.command()
@spelled_out
def status(output: OutputFormat = "table", **where: Unpack[WhereLocal]) -> None:
    """Show the supervisor, the ingress and the TorchServe processes."""
    printers.print_local(deps.workspace(**where).node.info(), output)


@app.command()
@spelled_out
def logs(**where: Unpack[WhereLocal]) -> None:
    """Print the log of the supervisor."""
    for line in deps.workspace(**where).node.supervisor_log():
        show(line)
