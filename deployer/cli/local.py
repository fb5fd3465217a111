"""`kdeploy local`: the one-node target itself."""

from __future__ import annotations

import typer

from deployer.cli import deps, printers
from deployer.cli.options import ConfigFile, Output, OutputFormat, Sets, TargetName
from deployer.cli.terminal import show, tell

app = typer.Typer(
    no_args_is_help=True, help="The one-node target on this machine: start, stop, status, logs."
)


@app.command()
def start(config: ConfigFile = None, target: TargetName = None, sets: Sets = None) -> None:
    """Start it, and restore the services that were wanted; done by the first rollout, too."""
    from deployer.config import check_root

    loaded = deps.settings(config=config, sets=sets, target=target)
    node = deps.open_node(loaded, target)
    check_root(loaded.root)
    node.start()
    tell(f"the ingress listens on {node.info().ingress}")


@app.command()
def stop(config: ConfigFile = None, target: TargetName = None, sets: Sets = None) -> None:
    """Stop it and everything that it started; the services come back with `start`."""
    node = deps.open_node(deps.settings(config=config, sets=sets, target=target), target)
    tell("stopped" if node.stop() else "nothing was running")


@app.command()
def status(
    config: ConfigFile = None,
    target: TargetName = None,
    sets: Sets = None,
    output: OutputFormat = Output.TABLE,
) -> None:
    """Show the supervisor, its ingress and the TorchServes that it runs."""
    node = deps.open_node(deps.settings(config=config, sets=sets, target=target), target)
    printers.print_local(node.info(), output)


@app.command()
def logs(config: ConfigFile = None, target: TargetName = None, sets: Sets = None) -> None:
    """Print the supervisor's own log."""
    node = deps.open_node(deps.settings(config=config, sets=sets, target=target), target)
    for line in node.supervisor_log():
        show(line)
