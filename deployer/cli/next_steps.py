"""Prints the next step: the command to run, and a curl line that sends a request."""

from __future__ import annotations

import base64
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from deployer.cli.options import Unpack, WhereProject, WhereStored
from deployer.cli.terminal import tell

if TYPE_CHECKING:
    from deployer.config import TargetConfig
    from deployer.observed import Reference
    from deployer.predict.codecs import Protocol
    from deployer.targets.protocols import Endpoint, Target

LOCAL_PORT = 8080  # of `kubectl port-forward`
# A PNG of one white pixel: a valid request for any image model.
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mP4DwABAQEAHLCMmQAAAABJRU5ErkJggg=="
)


def tell_next(step: str) -> None:
    """Print the next step on stderr if stdout is a terminal."""
    if sys.stdout.isatty():
        tell(f"next: {step}")


def tell_predict(service: str | None, **where: Unpack[WhereStored]) -> None:
    """Print the command that sends a prediction request as the next step."""
    words = ["predict", "FILE", *([f"--service={service}"] if service else [])]
    tell_next(f"run {command(*words, **where)} to send a prediction request")


def print_request(
    target: Target,
    config: TargetConfig,
    reference: Reference,
    protocol: Protocol,
    write: Callable[[str], None],
) -> None:
    """Print the address for requests to a service, and shell commands that send one."""
    from deployer.errors import KdeployError

    try:
        endpoint = target.reach.endpoint(reference)
    except KdeployError as error:
        write(f"cannot find the address for requests: {error.what}")
        return
    address = "a port-forward to the ingress" if endpoint.tunnel else endpoint.url
    write(
        f"send requests to {address}"
        + (f", with the header Host: {endpoint.host}:" if endpoint.host else ":")
    )
    for line in request_lines(endpoint, config, endpoint.model or reference.name, protocol):
        write(f"  {line}")


def request_lines(endpoint: Endpoint, config: TargetConfig, name: str, protocol: Protocol) -> list[str]:
    """Return shell commands that send a prediction request: a port-forward if needed, and curl.

    The body is an image of one pixel. The commands contain no credentials.
    """
    from urllib.parse import urlsplit

    from deployer.predict.codecs import encode
    from deployer.predict.content import JSON

    request = encode(protocol, name, _PIXEL)
    wanted = urlsplit(endpoint.url + request.path)
    host, port = wanted.hostname or "", wanted.port or {"https": 443}.get(wanted.scheme, 80)
    lines = []
    if endpoint.tunnel:
        namespace, pod, pod_port = endpoint.tunnel.pod
        flags = [
            f"--{flag}={value}"
            for flag in ("kubeconfig", "context")
            if (value := getattr(config, flag, None))
        ]
        forward = ["port-forward", f"--namespace={namespace}", f"pod/{pod}", f"{LOCAL_PORT}:{pod_port}"]
        lines.append(shlex.join(["kubectl", *flags, *forward]))
        host, port = "localhost", LOCAL_PORT
    address = f"[{host}]" if ":" in host else host
    words = ["curl", "-H", f"Content-Type: {JSON}"]
    if wanted.scheme == "https" and endpoint.host:  # TLS needs the host name, not the address
        named = urlsplit(f"//{endpoint.host}")
        words += ["--connect-to", f"{named.hostname}:{named.port or 443}:{address}:{port}"]
        url = f"https://{endpoint.host}{wanted.path}"
    else:
        words += ["-H", f"Host: {endpoint.host}"] if endpoint.host else []
        url = f"{wanted.scheme}://{address}:{port}{wanted.path}"
    lines.append(shlex.join([*words, url, "-d", request.body.decode()]))
    return lines


def command(*words: str, **where: Unpack[WhereProject]) -> str:
    """Format a kdeploy command in backticks, with the target options, quoted for the shell."""
    flags = [
        f"--{'set' if name == 'sets' else name}={one}"
        for name, value in where.items()
        if value is not None
        for one in (value if isinstance(value, list) else [value])
    ]
    return f"`{shlex.join(['kdeploy', *words, *flags])}`"
