"""Connects to the cluster that kubectl would use: a kubeconfig's context, or the account of the pod.

It reads a kubeconfig as kubectl does: it merges several files, and reads the files that they name. Every read
has a size limit, and no error quotes the content of a file, which can be a secret.
"""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from deployer.errors import ConfigError, TargetError
from deployer.files import expanded, is_file, read_bytes, read_text
from deployer.patience import PATIENCE, Patience
from deployer.proxies import find_proxy
from deployer.targets.kserve.client.connection import Connection
from deployer.targets.kserve.client.exec_plugin import ExecPlugin

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_LISTS = {"contexts": "context", "clusters": "cluster", "users": "user"}
_FILES = ("certificate-authority", "client-certificate", "client-key")  # NAME-data holds the content
_KUBECONFIG_MAX = 16 << 20  # bytes

_Named = dict[str, tuple[dict[str, Any], Path]]  # an entry and the folder of its file, by name


class Chosen(Struct, frozen=True):
    """One context of a kubeconfig, with the entries that it names.

    Paths in the user's entry are relative to `folder`.
    """

    name: str
    context: dict[str, Any]
    cluster: dict[str, Any]
    user: dict[str, Any]
    folder: Path


class _Entry(Struct):
    name: str
    context: dict[str, Any] | None = None
    cluster: dict[str, Any] | None = None
    user: dict[str, Any] | None = None


class _File(Struct, rename="kebab"):
    current_context: str | None = None
    contexts: list[_Entry] | None = None
    clusters: list[_Entry] | None = None
    users: list[_Entry] | None = None


def connect(kubeconfig: str | None, context: str | None, patience: Patience = PATIENCE) -> Connection:
    """Read the kubeconfig, or the account of the pod in which this runs. Raises ConfigError, TargetError.

    `kubeconfig` and KUBECONFIG can name several files, which are merged. Sends nothing to the cluster,
    and never writes to a kubeconfig.
    """
    files = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    in_a_pod = "KUBERNETES_SERVICE_HOST" in os.environ and not (kubeconfig or context)
    if in_a_pod and not any(is_file(expanded(name)) for name in files.split(os.pathsep) if name):
        return connect_in_pod(_ACCOUNT, patience)
    chosen = read_kubeconfig(files, context)
    cluster, host = chosen.cluster, str(chosen.cluster["server"])
    where = f"kubeconfig {files}"
    authorize, certificate, key = _credentials(chosen, where, patience)
    return Connection(
        host,
        namespace=str(chosen.context.get("namespace") or "default"),
        where=f"{host} (context {chosen.name})",
        tls=_tls(
            host,
            authority=_decode(cluster, "certificate-authority-data", where),
            certificate=certificate,
            key=key,
            verify=not cluster.get("insecure-skip-tls-verify"),
        ),
        authorize=authorize,
        server_name=cluster.get("tls-server-name"),
        proxy=find_proxy(host, cluster.get("proxy-url")),
        user=str(chosen.context.get("user") or ""),
        patience=patience,
    )


def connect_in_pod(account: Path, patience: Patience = PATIENCE) -> Connection:
    """Use the service account whose token, CA and namespace are in a folder. Raises ConfigError."""
    name, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    host = f"https://[{name}]:{port}" if ":" in name else f"https://{name}:{port}"

    def read(file: str) -> str:
        try:
            return read_text(account / file).strip()
        except OSError as error:
            what = f"cannot read the pod's account: {error.strerror}"
            raise ConfigError(what, where=str(account / file)) from error

    def authorize() -> str:
        return f"Bearer {read('token')}"  # the kubelet replaces the file before the token expires

    authorize()
    return Connection(
        host,
        namespace=read("namespace"),
        where="the cluster of this pod",
        tls=_tls(host, authority=read("ca.crt").encode()),
        authorize=authorize,
        proxy=find_proxy(host, None),
        patience=patience,
    )


def _credentials(chosen: Chosen, where: str, patience: Patience) -> tuple[Callable[[], str], bytes, bytes]:
    """Return what makes the Authorization header, and the client's certificate and key, both PEM."""
    user = chosen.user
    certificate = _decode(user, "client-certificate-data", where)
    key = _decode(user, "client-key-data", where)
    if token := user.get("token"):
        return f"Bearer {token}".strip, certificate, key
    if "exec" in user:
        plugin = ExecPlugin(
            user["exec"], chosen.cluster, folder=chosen.folder, where=where, patience=patience
        )
        given = plugin.credential()
        if given.token:
            return (lambda: f"Bearer {plugin.credential().token}"), certificate, key
        return str, (given.certificate or "").encode(), (given.key or "").encode()
    if provider := user.get("auth-provider"):
        name = provider.get("name") if isinstance(provider, dict) else None
        raise ConfigError(
            f"auth provider {name} is not supported",
            where=where,
            hint="Use an exec plugin instead, such as kubelogin for OpenID Connect.",
        )
    if "username" in user and "password" in user:
        pair = f"{user['username']}:{user['password']}".encode()
        return (lambda: f"Basic {base64.b64encode(pair).decode()}"), certificate, key
    return str, certificate, key


def _decode(entry: dict[str, Any], key: str, where: str) -> bytes:
    try:
        return base64.b64decode(entry.get(key) or "")
    except (TypeError, ValueError):
        hint = "Log in to the cluster again."
        raise ConfigError(f"invalid {key}: it is not base64", where=where, hint=hint) from None


def _tls(
    host: str, *, authority: bytes, certificate: bytes = b"", key: bytes = b"", verify: bool = True
) -> ssl.SSLContext:
    # Python reads certificates and keys only from files. These are deleted before the function returns.
    with tempfile.TemporaryDirectory(prefix="kdeploy-") as folder:
        paths = [Path(folder, name) for name in ("authority", "certificate", "key")]
        for path, data in zip(paths, (authority, certificate, key), strict=True):
            path.write_bytes(data)
        try:
            context = ssl.create_default_context(cafile=paths[0] if authority else None)
            if certificate:
                context.load_cert_chain(paths[1], paths[2] if key else None)
        except (OSError, ssl.SSLError) as error:
            what = f"cannot use a certificate of the kubeconfig: {getattr(error, 'reason', error)}"
            raise TargetError(what, where=host, hint="Log in to the cluster again.") from None
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def read_kubeconfig(files: str, name: str | None) -> Chosen:
    """Read the named or the current context from files separated as in KUBECONFIG.

    A file that does not exist is skipped. Raises ConfigError.
    """
    try:
        return _choose(files, name)
    except _InvalidError as error:
        raise ConfigError(
            f"cannot find a cluster in the kubeconfig: {error}",
            where=f"kubeconfig {files}",
            hint="Name a file with --kubeconfig or KUBECONFIG, and one of its contexts with --context.",
        ) from None


class _InvalidError(Exception):
    """Why a kubeconfig cannot be used; the text quotes nothing of it but names."""


def _choose(files: str, name: str | None) -> Chosen:
    current, entries = _merge(files)
    name = name or current
    if not name:
        raise _InvalidError("it has no current context")
    context, _ = _find(entries, "contexts", name)
    cluster, cluster_folder = _find(entries, "clusters", str(context.get("cluster") or ""))
    if not isinstance(cluster.get("server"), str):
        raise _InvalidError(f"its cluster {context['cluster']} has no server")
    user, folder = entries["users"].get(str(context.get("user") or ""), ({}, cluster_folder))
    contents = _with_contents(cluster, cluster_folder), _with_contents(user, folder)
    return Chosen(name, context, *contents, folder)


def _merge(files: str) -> tuple[str | None, dict[str, _Named]]:
    """Return the current context and the entries of all files; the first entry of a name counts."""
    paths = [expanded(file) for file in files.split(os.pathsep) if file]
    found = [(path, document) for path in paths if (document := _read(path))]
    if not found:
        raise _InvalidError("the file does not exist")
    entries: dict[str, _Named] = {kind: {} for kind in _LISTS}
    for path, document in found:
        for kind, key in _LISTS.items():
            for one in getattr(document, kind) or []:
                entries[kind].setdefault(one.name, (getattr(one, key) or {}, path.absolute().parent))
    return next((one.current_context for _, one in found if one.current_context), None), entries


def _read(path: Path) -> _File | None:
    """Return the content of a file, or None if it does not exist."""
    import yaml

    try:
        return msgspec.convert(yaml.safe_load(read_bytes(path, _KUBECONFIG_MAX)), _File)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _InvalidError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.ValidationError:
        raise _InvalidError("it is not a kubeconfig") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise _InvalidError("it is not valid YAML") from None


def _find(entries: dict[str, _Named], kind: str, name: str) -> tuple[dict[str, Any], Path]:
    if name not in entries[kind]:
        raise _InvalidError(f"it has no {_LISTS[kind]} {name}")
    return entries[kind][name]


def _with_contents(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return an entry in which the contents of files replace their names."""
    entry = dict(entry)
    for key in (*_FILES, "tokenFile"):
        file = entry.pop(key, None)
        data = "token" if key == "tokenFile" else f"{key}-data"
        if not file or entry.get(data):
            continue
        try:
            path = folder / str(file)
            entry[data] = (
                read_text(path).strip() if key == "tokenFile" else base64.b64encode(read_bytes(path)).decode()
            )
        except OSError as error:
            raise _InvalidError(f"cannot read its {key}: {error.strerror}") from error
    return entry
