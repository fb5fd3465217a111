"""The command predict."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployer.cli import deps, predictions
from deployer.cli.headers import read_headers
from deployer.cli.options import OutputFormat, Protocol, ServiceOption, Unpack, Where, spelled_out
from deployer.cli.terminal import StoppedError
from deployer.errors import ConfigError

if TYPE_CHECKING:
    from deployer.predict.inputs import Input

STDIN_MAX = 1 << 30  # bytes


@spelled_out
def predict(
    call: typer.Context,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE|-]...",
            help="Files to send: images, text, JSON, or other input of the handler. - is stdin. "
            "Each line of a .jsonl file is one request.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", metavar="TEXT|@FILE", help="Send this JSON or text, or a file."),
    ] = None,
    service: ServiceOption = None,
    kserve: Annotated[
        bool,
        typer.Option(
            "--kserve", help="Send requests through the ingress. For clusters, this is the default."
        ),
    ] = False,
    ingress: Annotated[
        str | None,
        typer.Option(
            "--ingress",
            envvar="KDEPLOY_INGRESS",
            metavar="URL|port-forward",
            help="URL of the ingress, or port-forward (clusters only). Default: detected automatically.",
        ),
    ] = None,
    protocol: Annotated[
        Protocol | None,
        typer.Option(
            "--protocol",
            help='Protocol of the requests; json sends {"data": base64} to TorchServe\'s own path, '
            "grpc-v2 needs kdeploy[kserve]. Default: that of a V1 or V2 request, else v1 through the ingress "
            "and plain to TorchServe.",
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Request explanations instead of predictions.")
    ] = False,
    resize: Annotated[
        bool,
        typer.Option("--resize", help="Shrink images that exceed the maximum request size."),
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="FOLDER",
            help="Write each answer to a file in this folder: the picture with detections, classes and masks "
            "drawn on it, else the answer itself.",
            show_default=False,
        ),
    ] = None,
    upright: Annotated[
        bool,
        typer.Option(
            "--upright",
            help="Boxes and masks count from the upright picture: the handler applies its EXIF orientation.",
        ),
    ] = False,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", metavar="NAME:VALUE|@FILE", help="Send a header, or the headers in a file."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="@FILE|-",
            help="Send the bearer token in a file or stdin. Default: KDEPLOY_TOKEN (ingress only).",
        ),
    ] = None,
    cookie: Annotated[
        list[str] | None,
        typer.Option(
            "--cookie",
            metavar="[NAME=]@FILE",
            help="Send the cookie in a file. Default: KDEPLOY_COOKIE (ingress only).",
        ),
    ] = None,
    authority: Annotated[
        Path | None,
        typer.Option(
            "--certificate-authority",
            metavar="FILE",
            help="PEM file with the certificates to trust. Default: SSL_CERT_FILE, or the system's.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(
            "--timeout",
            help="Maximum time for each request, such as 90s or 5m. "
            "Default: 60s, or 10s more than serving.response-timeout if that is longer.",
        ),
    ] = None,
    output: OutputFormat = "table",
    **where: Unpack[Where],
) -> None:
    """Send a prediction request for each input. Without --kserve, a local TorchServe is called directly."""
    from deployer.cli.saving import Saver
    from deployer.predict import Client
    from deployer.predict.inputs import find_pictures
    from deployer.targets.protocols import Via

    if not files and not data:
        raise typer.BadParameter("missing argument FILE, -, or --data", ctx=call, param_hint="FILE")
    seconds = None if timeout is None else deps.duration(timeout, "--timeout", zero=False)
    inputs = list(_inputs(files or [], data or [], token))
    work = deps.workspace(ingress=ingress, allow_no_project=True, **where)
    name, target = work.chosen
    on_cluster = target.__struct_config__.tag == "kserve"
    if not on_cluster and _is_flag(call, "ingress"):
        raise ConfigError(
            f"target {name!r} is this machine, which has its own ingress",
            where="--ingress",
            hint="Remove `--ingress`: `--kserve` sends requests through it. For a cluster, add `--target`.",
        )
    kserve = kserve or on_cluster
    reference, serving = work.reference(service), work.settings.config.serving
    if save:
        save.mkdir(parents=True, exist_ok=True)  # if it cannot be made, no request is sent
    via = Via.GRPC if protocol == "grpc-v2" else Via.INGRESS if kserve else Via.DIRECT
    endpoint = work.target.reach.endpoint(reference, via)
    with Client(
        endpoint,
        endpoint.model or reference.name,
        timeout=seconds or max(60.0, serving.response_timeout + 10.0),
        headers=read_headers(header or [], token, cookie or [], os.environ if kserve else {}),
        max_request_size=serving.max_request_size,
        resize=resize,
        authority=authority,
    ) as client:
        answers = client.predict(
            inputs, protocol or ("v1" if kserve else "plain"), follow=protocol is None, explain=explain
        )
        try:
            predictions.print_answers(answers, output, Saver(save, find_pictures(inputs), upright=upright))
        except KeyboardInterrupt as error:
            raise StoppedError("the inputs without a line above have no result") from error


def _inputs(files: list[str], data: list[str], token: str | None) -> "Iterator[Path | Input]":
    """Yield the inputs of the command line. Raises ConfigError if two of them read stdin."""
    from deployer.predict.inputs import DATA, STDIN, find_file, of_bytes

    if files.count("-") + data.count("@-") + (token == "-") > 1:  # noqa: S105 - stdin
        raise ConfigError("stdin can be read only once", where="-", hint="Remove one of the two.")
    for file in files:
        yield of_bytes(STDIN, _read_stdin()) if file == "-" else find_file(file)
    for text in data:
        if text == "@-":
            yield of_bytes(STDIN, _read_stdin())
        elif text.startswith("@"):
            yield Path(text[1:])
        else:
            yield of_bytes(DATA, text.encode(errors="surrogateescape"))


def _read_stdin() -> bytes:
    content = sys.stdin.buffer.read(STDIN_MAX + 1)
    if len(content) > STDIN_MAX:
        raise ConfigError(f"more than {STDIN_MAX:,} bytes", where="stdin")
    return content


def _is_flag(call: typer.Context, name: str) -> bool:
    """Return whether an option is on the command line, not in the environment."""
    source = call.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
