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
from contextlib import suppress
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
_AUTHORITY = "certificate-authority"
_KUBECONFIG_MAX = 16 << 20  # bytes


class _Entry(Struct, frozen=True):
    """The fields of an entry; its relative paths start at `folder`."""

    fields: dict[str, Any]
    folder: Path


class Chosen(Struct, frozen=True):
    """One context of a kubeconfig, with the cluster and the user that it names."""

    name: str
    context: dict[str, Any]
    cluster: _Entry
    user: _Entry


class _Named(Struct):
    name: str
    context: dict[str, Any] | None = None
    cluster: dict[str, Any] | None = None
    user: dict[str, Any] | None = None


class _File(Struct, rename="kebab"):
    current_context: str | None = None
    contexts: list[_Named] | None = None
    clusters: list[_Named] | None = None
    users: list[_Named] | None = None


def connect(kubeconfig: str | None, context: str | None, patience: Patience = PATIENCE) -> Connection:
    """Read the kubeconfig, or the account of the pod in which this runs. Raises ConfigError, TargetError.

    `kubeconfig` and KUBECONFIG can name several files, which are merged. Sends nothing to the cluster,
    and never writes to a kubeconfig.
    """
    files = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    in_a_pod = "KUBERNETES_SERVICE_HOST" in os.environ and not (kubeconfig or context)
    if in_a_pod and not any(is_file(expanded(name)) for name in files.split(os.pathsep) if name):
        return connect_in_pod(_ACCOUNT, patience)
    chosen, where = read_kubeconfig(files, context), f"kubeconfig {files}"
    authority = _content(chosen.cluster, _AUTHORITY, where)
    authorize, certificate, key = _credentials(chosen, authority, where, patience)
    cluster, host = chosen.cluster.fields, str(chosen.cluster.fields["server"])
    verify = not cluster.get("insecure-skip-tls-verify")
    return Connection(
        host,
        namespace=str(chosen.context.get("namespace") or "default"),
        where=f"{host} (context {chosen.name})",
        tls=_tls(host, authority=authority, certificate=certificate, key=key, verify=verify),
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
            raise ConfigError(
                f"cannot read the pod's account: {error.strerror}",
                where=str(account / file),
                hint="Mount the service account's token, or name a kubeconfig with --kubeconfig.",
            ) from error

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


def _credentials(
    chosen: Chosen, authority: bytes, where: str, patience: Patience
) -> tuple[Callable[[], str], bytes, bytes]:
    """Return what makes the Authorization header, and the client's certificate and key, both PEM."""
    user = chosen.user.fields
    certificate = _content(chosen.user, "client-certificate", where)
    key = _content(chosen.user, "client-key", where)
    if user.get("token") or user.get("tokenFile"):
        token = user.get("token") or _content(chosen.user, "tokenFile", where).decode(errors="replace")
        return f"Bearer {token}".strip, certificate, key
    if "exec" in user:
        cluster = {name: value for name, value in chosen.cluster.fields.items() if name != _AUTHORITY}
        if authority:
            cluster[f"{_AUTHORITY}-data"] = base64.b64encode(authority).decode()
        folder = chosen.user.folder
        plugin = ExecPlugin(user["exec"], cluster, folder=folder, where=where, patience=patience)
        given = plugin.credential()
        if given.token:
            return (lambda: f"Bearer {plugin.credential().token}"), certificate, key
        return str, (given.certificate or "").encode(), (given.key or "").encode()
    if "auth-provider" in user:
        return _log_in(user["auth-provider"], where), certificate, key
    if "username" in user and "password" in user:
        pair = f"{user['username']}:{user['password']}".encode()
        return (lambda: f"Basic {base64.b64encode(pair).decode()}"), certificate, key
    return str, certificate, key


def _log_in(provider: Any, where: str) -> Callable[[], str]:
    """Return what makes the header of an auth provider: the kubernetes package refreshes its token."""
    from kubernetes.client import Configuration
    from kubernetes.config import load_kube_config_from_dict

    document = {
        "clusters": [{"name": "chosen", "cluster": {"server": ""}}],
        "users": [{"name": "chosen", "user": {"auth-provider": provider}}],
        "contexts": [{"name": "chosen", "context": {"cluster": "chosen", "user": "chosen"}}],
        "current-context": "chosen",
    }
    configuration = Configuration()

    def authorize() -> str:
        reason = "it has no valid token"
        try:
            if header := configuration.get_api_key_with_prefix("BearerToken"):
                return str(header)
        except Exception as error:  # noqa: BLE001 - auth providers fail in any way, and quote their secrets
            reason = type(error).__name__
        raise ConfigError(
            f"cannot log in with the kubeconfig's auth provider: {reason}",
            where=where,
            hint="Log in to the cluster again, or use an exec plugin such as kubelogin.",
        )

    with suppress(Exception):  # then there is no token, which authorize reports
        load_kube_config_from_dict(document, client_configuration=configuration, persist_config=False)
    authorize()
    return authorize


def _content(entry: _Entry, key: str, where: str) -> bytes:
    """Return the content of a field: inline under NAME-data, or in the file that it names."""
    try:
        if data := entry.fields.get(f"{key}-data"):
            return base64.b64decode(data)
        return read_bytes(entry.folder / str(entry.fields[key])) if entry.fields.get(key) else b""
    except OSError as error:
        reason = f"cannot read {key}: {error.strerror}"
    except (TypeError, ValueError):
        reason = f"invalid {key}-data: it is not base64"
    raise ConfigError(reason, where=where, hint="Log in to the cluster again.")


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
    context = _find(entries, "context", name).fields
    cluster = _find(entries, "cluster", str(context.get("cluster") or ""))
    if not isinstance(cluster.fields.get("server"), str):
        raise _InvalidError(f"its cluster {context['cluster']} has no server")
    user = entries.get(("user", str(context.get("user") or "")), _Entry({}, cluster.folder))
    return Chosen(name, context, cluster, user)


def _merge(files: str) -> tuple[str | None, dict[tuple[str, str], _Entry]]:
    """Return the current context, and the entries of all files by kind and name; the first one counts."""
    paths = [expanded(file) for file in files.split(os.pathsep) if file]
    found = [(path, document) for path in paths if (document := _read(path))]
    if not found:
        raise _InvalidError("the file does not exist")
    entries: dict[tuple[str, str], _Entry] = {}
    for path, document in found:
        folder = path.absolute().parent
        for one in document.contexts or []:
            entries.setdefault(("context", one.name), _Entry(one.context or {}, folder))
        for one in document.clusters or []:
            entries.setdefault(("cluster", one.name), _Entry(one.cluster or {}, folder))
        for one in document.users or []:
            entries.setdefault(("user", one.name), _Entry(one.user or {}, folder))
    return next((one.current_context for _, one in found if one.current_context), None), entries


def _find(entries: dict[tuple[str, str], _Entry], kind: str, name: str) -> _Entry:
    if (kind, name) not in entries:
        raise _InvalidError(f"it has no {kind} {name}")
    return entries[kind, name]


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
