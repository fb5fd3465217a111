"""A WebSocket to the API server, as exec and port-forward speak it: the handshake, through a proxy or not.

The protocol is v4.channel.k8s.io, which every API server since 1.20 knows: the first byte of a message is
its channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from deployer.errors import TargetError
from deployer.proxies import login_of
from deployer.targets.kserve.client import api_errors
from deployer.targets.kserve.client.connection import Connection

if TYPE_CHECKING:
    from websocket import WebSocket

_PROTOCOL = "v4.channel.k8s.io"


def open_websocket(connection: Connection, path: str, asked: str) -> WebSocket:
    """Open a WebSocket; `asked` says in words what for. Raises what a refusal stands for, TargetError."""
    import websocket

    options = _proxy_options(connection.proxy)
    try:
        opened = websocket.create_connection(
            "ws" + connection.host.removeprefix("http") + path,
            timeout=connection.patience.answer,
            header=connection.headers(),
            subprotocols=[_PROTOCOL],
            sslopt={"context": connection.tls, "server_hostname": connection.server_name},
            suppress_origin=True,
            redirect_limit=0,  # or the credentials would go wherever an answer says
            **options,
        )
    except websocket.WebSocketBadStatusException as error:
        body = error.resp_body or b""
        answer = api_errors.Answer(error.status_code, body, asked=asked, host=connection.where)
        raise api_errors.read(answer) from error
    except (websocket.WebSocketException, OSError) as error:
        raise api_errors.broken(error, connection.where) from error
    opened.settimeout(None)
    return opened


def _proxy_options(url: str | None) -> dict[str, Any]:
    """Return the options for a proxy; the environment's has been taken into account before."""
    if not url:
        # Without a proxy that it passes by, the package would take the environment's.
        return {"http_proxy_host": "none", "http_no_proxy": ["*"]}
    parts, account = urlsplit(url), login_of(url)
    if parts.scheme != "http":
        raise TargetError(
            "HTTPS proxies are not supported for WebSockets",
            where=f"proxy {parts.hostname}",
            hint="name the proxy by http://: the connection through it is encrypted either way",
        )
    return {
        "http_proxy_host": parts.hostname,
        "http_proxy_port": parts.port or 80,
        "http_proxy_auth": account if account[0] else None,
        "http_no_proxy": [""],
    }
