"""`kdeploy local`: the one-node target itself."""

import typer

from deployer.cli import deps, printers
from deployer.cli.options import ConfigFile, OutputFormat, Sets, TargetName
from deployer.cli.terminal import show, tell

app = typer.Typer(
    no_args_is_help=True, help="Manage the one-node target on this machine: start, stop, status, logs."
)


@app.command()
def start(config: ConfigFile = None, target: TargetName = None, sets: Sets = None) -> None:
    """Start it and restore its services; the first rollout does so, too."""
    from deployer.config import check_root

    loaded = deps.settings(config=config, sets=sets, target=target)
    node = deps.open_node(loaded, target)
    check_root(loaded.root)
    node.start()
    tell(f"the ingress listens on {node.info().ingress}")


@app.command()
def stop(config: ConfigFile = None, target: TargetName = None, sets: Sets = None) -> None:
    """Stop it and everything that it started; `start` restores its services."""
    node = deps.open_node(deps.settings(config=config, sets=sets, target=target), target)
    tell("stopped" if node.stop() else "nothing was running")


@app.command()
def status(
    config: ConfigFile = None,
    target: TargetName = None,
    sets: Sets = None,
    output: OutputFormat = "table",
) -> None:
    """Show the supervisor, its ingress and its TorchServes."""
    node = deps.open_node(deps.settings(config=config, sets=sets, target=target), target)
    printers.print_local(node.info(), output)


@app.command()
def logs(config: ConfigFile = None, target: TargetName = None, sets: Sets = None) -> None:
    """Print the supervisor's log."""
    node = deps.open_node(deps.settings(config=config, sets=sets, target=target), target)
    for line in node.supervisor_log():
        show(line)
