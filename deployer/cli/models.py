"""`kdeploy models`: the management API of the TorchServe that serves requests."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from deployer.cli import deps, printers
from deployer.cli.options import OutputFormat, Unpack, Where, WhereServed, spelled_out
from deployer.cli.terminal import tell

if TYPE_CHECKING:
    from deployer.predict import Models

app = typer.Typer(
    no_args_is_help=True,
    help="Manage the models of a local TorchServe. A restart undoes the changes: to keep them, change "
    "kdeploy.toml and roll out.",
)

ModelName = Annotated[str, typer.Argument(help="Name of the model.")]
Version = Annotated[str | None, typer.Option("--version", help="Version of the model.", show_default=False)]


@contextlib.contextmanager
def _models(service: str | None = None, **where: Unpack[Where]) -> "Iterator[Models]":
    from deployer.predict import Models
    from deployer.targets.protocols import Via

    work = deps.workspace(**where)
    endpoint = work.node.target.reach.endpoint(work.local_reference(service), Via.MANAGEMENT)
    with contextlib.closing(Models(endpoint)) as models:
        yield models


@app.command(name="list")
@spelled_out
def list_models(output: OutputFormat = "table", **where: Unpack[WhereServed]) -> None:
    """List the loaded models."""
    with _models(**where) as models:
        found = models.list()
    rows = [(model.name, model.url) for model in found]
    printers.print_rows(output, ["name", "archive"], rows, found, [model.name for model in found])


@app.command()
@spelled_out
def describe(
    name: ModelName, version: Version = None, output: OutputFormat = "table", **where: Unpack[WhereServed]
) -> None:
    """Show the versions and workers of a model."""
    with _models(**where) as models:
        found = models.describe(name, version or "all")
    rows = [
        (entry["modelVersion"], entry["batchSize"], worker["id"], worker["status"], worker.get("pid", ""))
        for entry in found
        for worker in entry["workers"]
    ]
    columns = ["version", "batch size", "worker", "status", "pid"]
    printers.print_rows(output, columns, rows, found, [entry["modelVersion"] for entry in found])


@app.command()
@spelled_out
def register(
    url: Annotated[str, typer.Argument(help="Model archive: a file name in the release, or an allowed URL.")],
    name: Annotated[
        str | None, typer.Option("--model-name", help="Name of the model. Default: the name in the archive.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--initial-workers", min=0, metavar="N", help="Number of workers to start.")
    ] = 1,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, metavar="N", help="Maximum number of requests in a batch."),
    ] = None,
    max_batch_delay: Annotated[
        int | None,
        typer.Option(
            "--max-batch-delay",
            min=1,
            metavar="N",
            help="Maximum time to wait for a full batch, in milliseconds.",
        ),
    ] = None,
    **where: Unpack[WhereServed],
) -> None:
    """Load another model."""
    with _models(**where) as models:
        message = models.register(
            url,
            model_name=name,
            initial_workers=workers,
            batch_size=batch_size,
            max_batch_delay=max_batch_delay,
        )
    tell(message)


@app.command()
@spelled_out
def scale(
    name: ModelName,
    min_workers: Annotated[
        int | None, typer.Option("--min-workers", min=0, metavar="N", help="Minimum number of workers.")
    ] = None,
    max_workers: Annotated[
        int | None, typer.Option("--max-workers", min=0, metavar="N", help="Maximum number of workers.")
    ] = None,
    version: Version = None,
    **where: Unpack[WhereServed],
) -> None:
    """Set the number of workers of a model and wait for them."""
    with _models(**where) as models:
        tell(models.scale(name, version, min_workers=min_workers, max_workers=max_workers))


@app.command(name="set-default")
@spelled_out
def set_default(
    name: ModelName,
    version: Annotated[str, typer.Argument(help="Version of the model.")],
    **where: Unpack[WhereServed],
) -> None:
    """Set the default version of a model. It serves requests that name no version."""
    with _models(**where) as models:
        tell(models.set_default(name, version))


@app.command()
@spelled_out
def unregister(name: ModelName, version: Version = None, **where: Unpack[WhereServed]) -> None:
    """Unload a model, or one version of it."""
    with _models(**where) as models:
        tell(models.unregister(name, version))
