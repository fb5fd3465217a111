"""The options that several commands share, named as kubectl names them.

Modules with commands do not postpone their annotations: Typer would compile each of them at every start.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypedDict, TypeVar, get_args, get_type_hints

import typer

Output = Literal["table", "json", "yaml", "name"]
DryRun = Literal["client", "server"]
Strategy = Literal["rolling", "recreate"]
Protocol = Literal["plain", "v1", "v2"]

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="Path of kdeploy.toml. Default: the nearest one in this folder or above.",
        show_default=False,
    ),
]
TargetName = Annotated[
    str | None,
    typer.Option("--target", "-t", help="Target name, if kdeploy.toml has several.", show_default=False),
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Namespace. Default: the target's.", show_default=False),
]
Context = Annotated[
    str | None,
    typer.Option("--context", help="Kubeconfig context. Default: the target's.", show_default=False),
]
Kubeconfig = Annotated[
    str | None,
    typer.Option("--kubeconfig", help="Path of the kubeconfig. Default: the target's.", show_default=False),
]
ForceConflicts = Annotated[
    bool, typer.Option("--force-conflicts", help="On a cluster: take over fields that other managers own.")
]
StoreUri = Annotated[
    str | None, typer.Option("--store", help="Model store. Default: store.uri.", show_default=False)
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set a key of kdeploy.toml, as in --set serving.batch-size=4."
    ),
]
OutputFormat = Annotated[Output, typer.Option("--output", "-o", help="Output format.")]
Strict = Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")]
Canary = Annotated[
    int,
    typer.Option(
        "--canary",
        min=0,
        max=100,
        metavar="PERCENT",
        help="Percentage of requests to send to the new release; the stable one gets the rest.",
    ),
]
StrategyName = Annotated[
    Strategy | None,
    typer.Option(
        "--strategy",
        help="recreate: in Standard mode, stop old pods before new ones start, where there is no room for "
        "both. Default: rolling, or recreate where no release answers requests.",
    ),
]
ReleaseId = Annotated[
    str | None,
    typer.Option("--release", help="Use this release from the model store instead of pushing one."),
]
ServiceName = Annotated[
    str | None,
    typer.Argument(help="Service name. Default: model.name in kdeploy.toml.", show_default=False),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
ServiceOption = Annotated[
    str | None,
    typer.Option("--service", help="Service name. Default: model.name in kdeploy.toml.", show_default=False),
]


class Where(TypedDict, total=False):
    """The options of every command on a target."""

    config: ConfigFile
    target: TargetName
    namespace: Namespace
    context: Context
    kubeconfig: Kubeconfig
    sets: Sets


class WhereStored(Where, total=False):
    """The options of every command that needs the model store."""

    store: StoreUri


class WhereServed(Where, total=False):
    """The options of every command on the models of a service."""

    service: ServiceOption


_Command = TypeVar("_Command", bound=Callable[..., None])


def spelled_out(command: _Command) -> _Command:
    """Let Typer see each option of a command's `**where: Unpack[Where]`."""
    signature = inspect.signature(command)
    *own, where = signature.parameters.values()
    (options,) = get_args(where.annotation)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in get_type_hints(options, include_extras=True).items()
    ]
    command.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return command
