"""The options that several commands share, named as kubectl names them."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypedDict, TypeVar, get_args, get_type_hints

import typer


class Output(str, enum.Enum):
    """How data is written to stdout."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class DryRun(str, enum.Enum):
    """Who is asked what would happen: nobody, or the cluster with all its checks."""

    CLIENT = "client"
    SERVER = "server"


class Strategy(str, enum.Enum):
    """What happens to old pods while new ones start."""

    ROLLING = "rolling"
    RECREATE = "recreate"


class Protocol(str, enum.Enum):
    """How a prediction is asked for."""

    PLAIN = "plain"
    V1 = "v1"
    V2 = "v2"


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="The kdeploy.toml; else the nearest one here or above.", show_default=False
    ),
]
TargetName = Annotated[
    str | None,
    typer.Option("--target", "-t", help="The target, where kdeploy.toml has several.", show_default=False),
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="The namespace, instead of the target's.", show_default=False),
]
Context = Annotated[
    str | None,
    typer.Option("--context", help="The kubeconfig's context, instead of the target's.", show_default=False),
]
Kubeconfig = Annotated[
    str | None,
    typer.Option("--kubeconfig", help="The kubeconfig, instead of the target's.", show_default=False),
]
ForceConflicts = Annotated[
    bool, typer.Option("--force-conflicts", help="On a cluster: take over fields that others hold.")
]
StoreUri = Annotated[
    str | None, typer.Option("--store", help="The model store, instead of store.uri.", show_default=False)
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set a key of kdeploy.toml, as in --set serving.batch-size=4."
    ),
]
OutputFormat = Annotated[Output, typer.Option("--output", "-o", help="How to print.")]
Strict = Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")]
Canary = Annotated[
    int | None,
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
    str | None, typer.Option("--release", help="A release of the model store, instead of pushing one.")
]
ServiceName = Annotated[
    str | None, typer.Argument(help="The service; else this project's.", show_default=False)
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
ServiceOption = Annotated[
    str | None, typer.Option("--service", help="The service; else this project's.", show_default=False)
]


class Where(TypedDict, total=False):
    """The options of every command on a target: which project, and where."""

    config: ConfigFile
    target: TargetName
    namespace: Namespace
    context: Context
    kubeconfig: Kubeconfig
    sets: Sets


class WhereStored(Where, total=False):
    """The same, and the model store."""

    store: StoreUri


_Command = TypeVar("_Command", bound=Callable[..., None])


def spelled_out(command: _Command) -> _Command:
    """Let Typer see each option that a command's `**where: Unpack[Where]` stands for."""
    kinds = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    *own, where = signature.parameters.values()
    (options,) = get_args(kinds[where.name])
    parameters = [
        *(one.replace(annotation=kinds[one.name]) for one in own),
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in get_type_hints(options, include_extras=True).items()
        ),
    ]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command
