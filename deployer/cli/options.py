"""The options that several commands share, named as kubectl names them.

Modules with commands do not postpone their annotations: Typer would compile each of them at every start.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypedDict, TypeVar, get_args, get_type_hints

from typer import Argument, Option

Output = Literal["table", "json", "yaml", "name"]
DryRun = Literal["client", "server"]
Strategy = Literal["rolling", "recreate"]
Protocol = Literal["plain", "v1", "v2"]

_CONFIG = "Path of kdeploy.toml. Default: the nearest one in this folder or above."
ConfigFile = Annotated[Path | None, Option("--config", "-c", help=_CONFIG)]
LongConfigFile = Annotated[Path | None, Option("--config", help=_CONFIG)]
TargetName = Annotated[str | None, Option("--target", "-t", help="Target name, if kdeploy.toml has several.")]
Namespace = Annotated[str | None, Option("--namespace", "-n", help="Namespace. Default: the target's.")]
Context = Annotated[str | None, Option("--context", help="Kubeconfig context. Default: the target's.")]
Kubeconfig = Annotated[
    str | None, Option("--kubeconfig", help="Path of the kubeconfig. Default: the target's.")
]
ForceConflicts = Annotated[
    bool, Option("--force-conflicts", help="On a cluster: take over fields that other managers own.")
]
StoreUri = Annotated[str | None, Option("--store", help="Model store. Default: store.uri.")]
Sets = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Set a key of kdeploy.toml, as in --set serving.batch-size=4."),
]
OutputFormat = Annotated[Output, Option("--output", "-o", help="Output format.")]
Strict = Annotated[bool, Option("--strict", help="Treat warnings as errors.")]
Canary = Annotated[
    int,
    Option(
        "--canary",
        min=0,
        max=100,
        metavar="PERCENT",
        help="Percentage of requests to send to the new release; the stable one gets the rest.",
    ),
]
StrategyName = Annotated[
    Strategy | None,
    Option(
        "--strategy",
        help="recreate: in Standard mode, stop old pods before new ones start, where there is no room for "
        "both. Default: rolling, or recreate where no release answers requests.",
    ),
]
ReleaseId = Annotated[
    str | None, Option("--release", help="Use this release from the model store instead of pushing one.")
]
_SERVICE = "Service name. Default: model.name in kdeploy.toml."
ServiceName = Annotated[str | None, Argument(help=_SERVICE)]
ServiceOption = Annotated[str | None, Option("--service", help=_SERVICE)]
Yes = Annotated[bool, Option("--yes", "-y", help="Do not ask for confirmation.")]


class WhereLocal(TypedDict, total=False):
    """The options of every command on the local target itself."""

    config: ConfigFile
    target: TargetName
    sets: Sets


class Where(WhereLocal, total=False):
    """The options of every command on a target."""

    namespace: Namespace
    context: Context
    kubeconfig: Kubeconfig


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
