"""The options that several commands share, with kubectl's names.

Modules with commands do not postpone their annotations: Typer would compile each one at every start.
"""

import inspect
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, TypedDict, TypeVar, get_args, get_type_hints

from typer import Argument, Option

from deployer.cli.completion import release_ids, service_names, target_names

if sys.version_info >= (3, 11):
    from typing import Unpack as Unpack  # noqa: PLC0414 - commands import it from here
else:
    from typing_extensions import Unpack as Unpack  # noqa: PLC0414

Output = Literal["table", "json", "yaml", "name"]
DryRun = Literal["client", "server"]
Strategy = Literal["rolling", "recreate"]
Protocol = Literal["plain", "json", "v1", "v2", "grpc-v2"]

_CONFIG = "Path to kdeploy.toml. Default: the nearest one in this folder or a parent folder."
ConfigFile = Annotated[Path | None, Option("--config", "-c", help=_CONFIG)]
LongConfigFile = Annotated[Path | None, Option("--config", help=_CONFIG)]
TargetName = Annotated[
    str | None,
    Option(
        "--target",
        "-t",
        autocompletion=target_names,
        help="Name of the target. Default: KDEPLOY_TARGET, default-target, or the only target.",
    ),
]
Namespace = Annotated[
    str | None,
    Option("--namespace", "-n", help="Namespace of the service. Default: the namespace of the target."),
]
Context = Annotated[
    str | None, Option("--context", help="Context in the kubeconfig. Default: the context of the target.")
]
Kubeconfig = Annotated[
    str | None, Option("--kubeconfig", help="Path to the kubeconfig. Default: the kubeconfig of the target.")
]
ForceConflicts = Annotated[
    bool, Option("--force-conflicts", help="Take over fields that another manager owns (clusters only).")
]
StoreUri = Annotated[
    str | None, Option("--store", help="URI of the model store. Default: store.uri in kdeploy.toml.")
]
Sets = Annotated[
    list[str] | None,
    Option(
        "--set", metavar="KEY=VALUE", help="Override a key of kdeploy.toml, such as serving.batch-size=4."
    ),
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
        help="Percentage of requests for this release. The stable release gets the rest.",
    ),
]
StrategyName = Annotated[
    Strategy | None,
    Option(
        "--strategy",
        help="How to replace pods: recreate stops the old pods before it starts new ones (Standard mode). "
        "Default: rolling, or recreate if no release serves requests.",
    ),
]
ReleaseId = Annotated[
    str | None,
    Option(
        "--release",
        autocompletion=release_ids,
        help="ID, or its start, of a release in the model store. Default: the project as it is.",
    ),
]
_SERVICE = "Name of the service. Default: service.name in kdeploy.toml, or model.name."
ServiceName = Annotated[str | None, Argument(help=_SERVICE, autocompletion=service_names)]
ServiceOption = Annotated[str | None, Option("--service", help=_SERVICE, autocompletion=service_names)]
ModelArchive = Annotated[
    Path | None,
    Option(
        "--mar",
        metavar="FILE",
        help="A finished model archive (.mar, .tar.gz or its folder) in place of the files in kdeploy.toml.",
    ),
]
Yes = Annotated[bool, Option("--yes", "-y", help="Do not ask for confirmation.")]


class WhereLocal(TypedDict, total=False):
    """The options of every command that manages the local target."""

    config: ConfigFile
    target: TargetName
    sets: Sets


class Where(WhereLocal, total=False):
    """The options of every command on a target."""

    namespace: Namespace
    context: Context
    kubeconfig: Kubeconfig


class WhereStored(Where, total=False):
    """The options of every command that uses the model store."""

    store: StoreUri


class WhereProject(WhereStored, total=False):
    """The options of every command on the project's release for one of its services."""

    service: ServiceOption
    mar: ModelArchive


class WhereServed(Where, total=False):
    """The options of every command that manages the models of a service."""

    service: ServiceOption


@cache
def _annotations(options: type) -> dict[str, object]:
    return get_type_hints(options, include_extras=True)


_Command = TypeVar("_Command", bound=Callable[..., None])


def spelled_out(command: _Command) -> _Command:
    """Show Typer each option of a command's `**where: Unpack[Where]`."""
    signature = inspect.signature(command)
    *own, where = signature.parameters.values()
    (options,) = get_args(where.annotation)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in _annotations(options).items()
    ]
    command.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return command
