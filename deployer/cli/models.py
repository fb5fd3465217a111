"""`kdeploy models`: TorchServe's management API, on the TorchServe that serves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployer.cli import deps, printers
from deployer.cli.options import ConfigFile, Namespace, Output, OutputFormat, ServiceOption, Sets, TargetName
from deployer.cli.terminal import tell

if TYPE_CHECKING:
    from deployer.predict import Models

app = typer.Typer(
    no_args_is_help=True,
    help="What TorchServe has loaded. Changes made here last until it is started again: to stay, "
    "they belong into kdeploy.toml and a rollout.",
)

ModelName = Annotated[str, typer.Argument(help="The model's name.")]
Version = Annotated[str | None, typer.Option("--version", help="One version of it.", show_default=False)]


@contextlib.contextmanager
def _models(
    config: Path | None,
    target: str | None,
    namespace: str | None,
    sets: list[str] | None,
    service: str | None,
) -> Iterator[Models]:
    from deployer.predict import Models
    from deployer.targets.protocols import Via

    loaded = deps.settings(config=config, sets=sets, target=target, namespace=namespace)
    opened = deps.open_node(loaded, target).target
    way = opened.reach.endpoint(deps.reference(loaded, opened, service), Via.MANAGEMENT)
    with contextlib.closing(Models(way)) as models:
        yield models


@app.command(name="list")
def list_models(
    config: ConfigFile = None,
    target: TargetName = None,
    namespace: Namespace = None,
    sets: Sets = None,
    service: ServiceOption = None,
    output: OutputFormat = Output.TABLE,
) -> None:
    """List the models that are loaded."""
    with _models(config, target, namespace, sets, service) as models:
        found = models.list()
    rows = [(model.name, model.url) for model in found]
    printers.print_rows(output, ["name", "archive"], rows, found, [model.name for model in found])


@app.command()
def describe(
    name: ModelName,
    version: Version = None,
    config: ConfigFile = None,
    target: TargetName = None,
    namespace: Namespace = None,
    sets: Sets = None,
    service: ServiceOption = None,
    output: OutputFormat = Output.TABLE,
) -> None:
    """Show a model's versions and their workers."""
    with _models(config, target, namespace, sets, service) as models:
        found = models.describe(name, version or "all")
    rows = [
        (entry["modelVersion"], entry["batchSize"], worker["id"], worker["status"], worker.get("pid", ""))
        for entry in found
        for worker in entry["workers"]
    ]
    columns = ["version", "batch size", "worker", "status", "pid"]
    printers.print_rows(output, columns, rows, found, [entry["modelVersion"] for entry in found])


@app.command()
def register(
    url: Annotated[str, typer.Argument(help="An archive of the release's model store, or an allowed URL.")],
    name: Annotated[str | None, typer.Option("--model-name", help="Another name for it.")] = None,
    workers: Annotated[int, typer.Option("--initial-workers", min=0, help="Workers to start.")] = 1,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Requests in a batch.")
    ] = None,
    max_batch_delay: Annotated[
        int | None, typer.Option("--max-batch-delay", min=1, help="Milliseconds.")
    ] = None,
    config: ConfigFile = None,
    target: TargetName = None,
    namespace: Namespace = None,
    sets: Sets = None,
    service: ServiceOption = None,
) -> None:
    """Load one more model."""
    with _models(config, target, namespace, sets, service) as models:
        said = models.register(
            url,
            model_name=name,
            initial_workers=workers,
            batch_size=batch_size,
            max_batch_delay=max_batch_delay,
        )
    tell(said)


@app.command()
def scale(
    name: ModelName,
    min_workers: Annotated[int | None, typer.Option("--min-workers", min=0, help="Workers at least.")] = None,
    max_workers: Annotated[int | None, typer.Option("--max-workers", min=0, help="Workers at most.")] = None,
    version: Version = None,
    config: ConfigFile = None,
    target: TargetName = None,
    namespace: Namespace = None,
    sets: Sets = None,
    service: ServiceOption = None,
) -> None:
    """Change how many workers a model has, and wait until it has them."""
    with _models(config, target, namespace, sets, service) as models:
        tell(models.scale(name, version, min_workers=min_workers, max_workers=max_workers))


@app.command(name="set-default")
def set_default(
    name: ModelName,
    version: Annotated[str, typer.Argument(help="The version.")],
    config: ConfigFile = None,
    target: TargetName = None,
    namespace: Namespace = None,
    sets: Sets = None,
    service: ServiceOption = None,
) -> None:
    """Make a version the one that is asked where none is named."""
    with _models(config, target, namespace, sets, service) as models:
        tell(models.set_default(name, version))


@app.command()
def unregister(
    name: ModelName,
    version: Version = None,
    config: ConfigFile = None,
    target: TargetName = None,
    namespace: Namespace = None,
    sets: Sets = None,
    service: ServiceOption = None,
) -> None:
    """Unload a model, or one version of it."""
    with _models(config, target, namespace, sets, service) as models:
        tell(models.unregister(name, version))
