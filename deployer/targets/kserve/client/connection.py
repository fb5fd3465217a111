"""The way to a cluster, found as kubectl finds it: kubeconfig, its context, or the account of the pod."""

from __future__ import annotations

import base64
import os
import re
import ssl
import tempfile
from pathlib import Path
from typing import Any

import urllib3

from deployer.errors import ConfigError, TargetError
from deployer.files import expanded, is_file
from deployer.patience import PATIENCE, Patience
from deployer.proxies import address_of, find_proxy
from deployer.targets.kserve.client.exec_plugin import ExecPlugin
from deployer.targets.kserve.client.kubeconfig import Chosen, read_kubeconfig


class Connection:
    """A pool of connections to one API server, and the credentials that it asks for."""

    def __init__(
        self,
        configuration: Any,
        namespace: str,
        where: str,
        user: str = "",
        plugin: ExecPlugin | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        """`user` is what the kubeconfig calls the user, empty for a pod's account; `plugin` gives tokens."""
        self.namespace = namespace
        self.where = re.sub(r"//[^/@]*@", "//", where)  # what stands before @ may be a password
        self.user = user
        self.host: str = configuration.host.rstrip("/")
        self.tls = _tls(configuration)
        self.server_name: str | None = configuration.tls_server_name
        self.proxy: str | None = configuration.proxy
        self.patience = patience
        self._configuration = configuration
        self._plugin = plugin
        options: dict[str, Any] = {
            "ssl_context": self.tls,
            "retries": False,
            "maxsize": 32,
            "timeout": urllib3.Timeout(connect=patience.connect, read=patience.answer),
        }
        if self.server_name:
            options["server_hostname"] = self.server_name
        if self.proxy:
            address, headers = address_of(self.proxy)
            self.pool: urllib3.PoolManager = urllib3.ProxyManager(address, proxy_headers=headers, **options)
        else:
            self.pool = urllib3.PoolManager(**options)

    def headers(self) -> dict[str, str]:
        """Return the headers that authenticate; an exec plugin runs again when its token has expired.

        Raises TargetError where it fails then, or where a header cannot carry the token.
        """
        if self._plugin:
            value = f"Bearer {self._plugin.credential().token}"
        else:
            auth = self._configuration.auth_settings().get("BearerToken")
            value = auth["value"].strip() if auth and auth["value"] else ""
        if not (value.isascii() and value.isprintable()):
            raise TargetError(
                "the kubeconfig's token has an invalid character",
                where=self.where,
                hint="log in to the cluster again",
            )
        return {"Authorization": value} if value else {}

    def close(self) -> None:
        """Close every connection."""
        self.pool.clear()


def connect(kubeconfig: str | None, context: str | None, patience: Patience = PATIENCE) -> Connection:
    """Read the kubeconfig, or the account of the pod that this runs in. Raises ConfigError, TargetError.

    `kubeconfig` and KUBECONFIG may name several files, which are merged. Sends nothing to the cluster,
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
        return Connection(configuration, _pod_namespace(), "the cluster of this pod", patience=patience)
    chosen = read_kubeconfig(files, context)
    plugin, user = _plugin(chosen, f"kubeconfig {files}", patience)
    # Python's TLS reads keys from files alone. They are removed once it has.
    with tempfile.TemporaryDirectory(prefix="kdeploy-") as folder:
        _load(configuration, chosen, user, folder, f"kubeconfig {files}")
        where = f"{configuration.host} (context {chosen.name})"
        namespace = str(chosen.context.get("namespace") or "default")
        account = str(chosen.context.get("user") or "")
        return Connection(configuration, namespace, where, account, plugin, patience)


def _plugin(chosen: Chosen, where: str, patience: Patience) -> tuple[ExecPlugin | None, dict[str, Any]]:
    """Return the exec plugin that gives the user's token, if one does, and the rest of the user's entry."""
    user = dict(chosen.user)
    spec = user.pop("exec", None)
    if spec is None or user.get("token") or user.get("auth-provider"):
        return None, user
    plugin = ExecPlugin(spec, chosen.cluster, folder=chosen.folder, where=where, patience=patience)
    given = plugin.credential()
    if given.token:
        return plugin, user
    user["client-certificate-data"] = base64.b64encode(given.certificate.encode()).decode()
    user["client-key-data"] = base64.b64encode(given.key.encode()).decode()
    return None, user


def _load(configuration: Any, chosen: Chosen, user: dict[str, Any], folder: str, where: str) -> None:
    """Let the kubernetes client read a context into its configuration, but for certificates and keys.

    Those it would write to files that every connection of this process shares.
    """
    from kubernetes import config

    cluster, kept = dict(chosen.cluster), {}
    names = {"cluster": "chosen", "user": "chosen"}
    document = {
        "clusters": [{"name": "chosen", "cluster": cluster}],
        "users": [{"name": "chosen", "user": user}],
        "contexts": [{"name": "chosen", "context": names}],
        "current-context": "chosen",
    }
    try:
        for entry, key, attribute in (
            (cluster, "certificate-authority-data", "ssl_ca_cert"),
            (user, "client-certificate-data", "cert_file"),
            (user, "client-key-data", "key_file"),
        ):
            if data := entry.pop(key, None):
                kept[attribute] = str(Path(folder, attribute))
                Path(folder, attribute).write_bytes(base64.b64decode(data))
        config.load_kube_config_from_dict(document, client_configuration=configuration, persist_config=False)
    except Exception as error:  # noqa: BLE001 - login providers fail in any way, and quote what they were told
        raise ConfigError(
            f"context {chosen.name} cannot be used: its credentials cannot be read ({type(error).__name__})",
            where=where,
            hint="log in to the cluster again; `kubectl config view --minify` shows the user's entry",
        ) from None
    for attribute, path in kept.items():
        setattr(configuration, attribute, path)
    # The kubernetes client knows neither `proxy-url` nor which of the environment's proxies is meant.
    configuration.proxy = find_proxy(configuration.host, chosen.cluster.get("proxy-url"))


def _in_a_pod(kubeconfig: str | None, context: str | None, files: str) -> bool:
    if kubeconfig or context or "KUBERNETES_SERVICE_HOST" not in os.environ:
        return False
    return not any(is_file(expanded(name)) for name in files.split(os.pathsep) if name)


def _pod_namespace() -> str:
    try:
        return Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text("utf-8").strip()
    except OSError:
        return "default"


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
