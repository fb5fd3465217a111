"""The way to a cluster, found as kubectl finds it: kubeconfig, its context, or the account of the pod."""

from __future__ import annotations

import logging
import os
import re
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import urllib3

from deployer.errors import ConfigError, TargetError
from deployer.proxies import address_of, find_proxy, login_of

if TYPE_CHECKING:
    from websocket import WebSocket

_CONNECT, _READ = 5.0, 20.0  # seconds; an API server that says nothing for so long is asked again


class Connection:
    """A pool of connections to one API server, and the credentials that it asks for."""

    def __init__(self, configuration: Any, namespace: str, where: str, user: str = "") -> None:
        """`user` is what the kubeconfig calls the user; empty for a pod's own account."""
        self.namespace = namespace
        self.where = re.sub(r"//[^/@]*@", "//", where)  # what stands before @ may be a password
        self.user = user
        self.host: str = configuration.host.rstrip("/")
        self._configuration = configuration
        self._tls = _tls(configuration)
        options: dict[str, Any] = {
            "ssl_context": self._tls,
            "retries": False,
            "maxsize": 8,
            "timeout": urllib3.Timeout(connect=_CONNECT, read=_READ),
        }
        if configuration.tls_server_name:
            options["server_hostname"] = configuration.tls_server_name
        if configuration.proxy:
            address, headers = address_of(configuration.proxy)
            self.pool: urllib3.PoolManager = urllib3.ProxyManager(address, proxy_headers=headers, **options)
        else:
            self.pool = urllib3.PoolManager(**options)

    def headers(self) -> dict[str, str]:
        """Return the headers that authenticate; an exec plugin is asked again when its token is over.

        Raises TargetError where it fails then, or where the token is none that a header can carry.
        """
        with _asking_the_plugin(self.where):
            auth = self._configuration.auth_settings().get("BearerToken")
        value = auth["value"].strip() if auth and auth["value"] else ""  # files of tokens end in a line break
        if not (value.isascii() and value.isprintable()):
            raise TargetError(
                "the kubeconfig's token has a character that no token has",
                where=self.where,
                hint="log in to the cluster again",
            )
        return {"Authorization": value} if value else {}

    def websocket(self, path: str, protocol: str) -> WebSocket:
        """Open a WebSocket that speaks one subprotocol. Raises what the websocket package raises, OSError."""
        import websocket

        opened = websocket.create_connection(
            "ws" + self.host.removeprefix("http") + path,
            timeout=_READ,
            header=self.headers(),
            subprotocols=[protocol],
            sslopt={"context": self._tls, "server_hostname": self._configuration.tls_server_name},
            suppress_origin=True,
            redirect_limit=0,  # or the credentials would go wherever an answer says
            **_proxy(self._configuration.proxy),
        )
        opened.settimeout(None)
        return opened

    def close(self) -> None:
        """Close every connection."""
        self.pool.clear()


def connect(kubeconfig: str | None, context: str | None) -> Connection:
    """Read the kubeconfig, or the account of the pod that this runs in. Raises ConfigError.

    `kubeconfig` and KUBECONFIG may name several files, which are merged. Asks nothing of the cluster,
    and never writes to a kubeconfig.
    """
    from kubernetes import config
    from kubernetes.client import Configuration

    configuration = Configuration()
    files = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    if _in_a_pod(kubeconfig, context, files):
        try:
            config.load_incluster_config(client_configuration=configuration)
        except (config.ConfigException, OSError) as error:
            raise ConfigError(f"the pod's own account cannot be used: {error}") from error
        configuration.proxy = find_proxy(configuration.host, None)
        return Connection(configuration, _pod_namespace(), "the cluster of this pod")
    # Keys that stand in the kubeconfig are written to files for Python's TLS, and removed once it has
    # read them.
    with tempfile.TemporaryDirectory(prefix="kdeploy-") as folder:
        chosen = _load(configuration, files, context, folder)
        named = chosen["context"]
        where = f"{configuration.host} (context {chosen['name']})"
        return Connection(
            configuration, str(named.get("namespace") or "default"), where, str(named.get("user") or "")
        )


def _load(configuration: Any, files: str, context: str | None, folder: str) -> dict[str, Any]:
    """Read a context into the configuration, and return it."""
    import yaml
    from kubernetes import config
    from kubernetes.config.kube_config import KubeConfigMerger

    try:
        merged = KubeConfigMerger(files).config
        with _asking_the_plugin(f"kubeconfig {files}"):
            config.load_kube_config_from_dict(
                merged,
                context=context,
                client_configuration=configuration,
                persist_config=False,
                temp_file_path=folder,
            )
        chosen: dict[str, Any] = merged["contexts"].get_with_name(context or merged["current-context"]).value
        cluster = merged["clusters"].get_with_name(chosen["context"]["cluster"])["cluster"].value
    except (config.ConfigException, OSError, yaml.YAMLError, TypeError, ValueError) as error:
        # A YAML error quotes the file, and a kubeconfig holds secrets.
        odd = {yaml.YAMLError: "it is not valid YAML", TypeError: "it is no kubeconfig"}
        said = next((what for kind, what in odd.items() if isinstance(error, kind)), _missing(str(error)))
        raise ConfigError(
            f"no cluster can be found there: {said}",
            where=f"kubeconfig {files}",
            hint="name one with --kubeconfig or KUBECONFIG, and a context of it with --context",
        ) from None
    # The kubernetes client knows neither `proxy-url` nor which of the environment's proxies is meant.
    configuration.proxy = find_proxy(configuration.host, cluster.get("proxy-url"))
    return chosen


def _missing(said: str) -> str:
    """Say what the kubernetes client did not find."""
    if "No configuration found" in said:
        return "there is no such file"
    named = re.search(r"Expected object with name (.+) in (?:.*/)?(\w+)s list", said)
    return f"it has no {named[2]} {named[1]}" if named else said


# What the kubernetes client logs of an exec plugin, and what it means.
_PLUGIN_FAULTS = (
    (r"exec: process returned (-?\d+)", r"ended with exit code \1"),
    (r"No such file or directory|Permission denied", "is not installed"),
    (r"plugin api version", "speaks another version of the API than the kubeconfig names"),
)


@contextmanager
def _asking_the_plugin(where: str) -> Iterator[None]:
    """Turn a failure of an exec plugin into an error of ours. Raises TargetError.

    The kubernetes client logs such a failure, with all that the plugin said, and goes on without a token.
    What a plugin says may hold one, so none of it is shown.
    """
    said: list[str] = []
    thread = threading.get_ident()

    def take(record: logging.LogRecord) -> bool:
        ours = record.module == "kube_config" and record.thread == thread
        if ours:
            said.append(record.getMessage())
        return not ours

    root = logging.getLogger()
    root.addFilter(take)
    try:
        yield
    finally:
        root.removeFilter(take)
    if said:
        found = ((re.search(pattern, said[0]), what) for pattern, what in _PLUGIN_FAULTS)
        fault = next((match.expand(what) for match, what in found if match), "gave no credentials")
        raise TargetError(
            f"the kubeconfig's exec plugin {fault}",
            where=where,
            hint="log in to the cluster again; `kubectl config view --minify` shows the plugin's command, "
            "which says more when you run it yourself",
        )


def _in_a_pod(kubeconfig: str | None, context: str | None, files: str) -> bool:
    if kubeconfig or context or "KUBERNETES_SERVICE_HOST" not in os.environ:
        return False
    return not any(Path(name).expanduser().is_file() for name in files.split(os.pathsep) if name)


def _pod_namespace() -> str:
    try:
        return Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text("utf-8").strip()
    except OSError:
        return "default"


def _proxy(url: str | None) -> dict[str, Any]:
    """Return a WebSocket's options for a proxy; the environment has had its say before."""
    if not url:
        # Without a proxy that it passes by, the package would take the environment's.
        return {"http_proxy_host": "none", "http_no_proxy": ["*"]}
    parts, account = urlsplit(url), login_of(url)
    if parts.scheme != "http":
        raise TargetError(
            "a WebSocket cannot go through a proxy by https://",
            where=f"proxy {parts.hostname}",
            hint="name the proxy by http://: what goes through it is encrypted all the same",
        )
    return {
        "http_proxy_host": parts.hostname,
        "http_proxy_port": parts.port or 80,
        "http_proxy_auth": account if account[0] else None,
        "http_no_proxy": [""],
    }


def _tls(configuration: Any) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
    except (OSError, ssl.SSLError) as error:
        raise TargetError(
            f"a certificate of the kubeconfig cannot be used: {getattr(error, 'reason', error)}",
            where=configuration.host,
            hint="log in to the cluster again",
        ) from None
    if not configuration.verify_ssl:  # the kubeconfig says insecure-skip-tls-verify
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
