"""A kubeconfig's exec plugin: asked for credentials, and again when they expire. Nothing it says is shown."""

from __future__ import annotations

import json
import os
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from msgspec import Struct

from deployer.errors import TargetError
from deployer.patience import Patience
from deployer.processes import DEVNULL, EndlessError, ask_program

_LOGIN = 600.0  # seconds, for people to log in
_EARLY = timedelta(seconds=10)  # a token is not used to its last moment


class Credential(Struct, frozen=True, kw_only=True):
    """What a plugin gives: a bearer token, or a certificate with its key, both PEM."""

    token: str = ""
    certificate: str = ""
    key: str = ""
    expires: datetime | None = None


class ExecPlugin:
    """The plugin that a user's entry names; relative paths are relative to the `folder` of the kubeconfig."""

    def __init__(
        self, spec: Any, cluster: dict[str, Any], *, folder: Path, where: str, patience: Patience
    ) -> None:
        self._spec: dict[str, Any] = spec if isinstance(spec, dict) else {}
        self._cluster = cluster
        self._folder = folder
        self._where = where
        self._patience = patience
        self._held: Credential | None = None
        self._asking = threading.Lock()

    def credential(self) -> Credential:
        """Return credentials that have not expired. Thread-safe. Raises TargetError."""
        with self._asking:
            if self._held is None or _is_over(self._held, self._patience.clock.utc()):
                self._held = self._ask()
            return self._held

    def _ask(self) -> Credential:
        try:
            command = [str(self._spec["command"]), *map(str, self._spec.get("args") or [])]
            version = str(self._spec["apiVersion"])
            environment = {str(one["name"]): str(one["value"]) for one in self._spec.get("env") or []}
        except (KeyError, TypeError):
            raise self._fault("gave no credentials: its entry is not complete") from None
        interactive = sys.stdin.isatty() and self._spec.get("interactiveMode") != "Never"
        info = {"apiVersion": version, "kind": "ExecCredential", "spec": self._info(interactive)}
        try:
            ended = ask_program(
                command,
                seconds=_LOGIN if interactive else self._patience.program,
                cwd=self._folder,
                env={**os.environ, **environment, "KUBERNETES_EXEC_INFO": json.dumps(info)},
                stdin=None if interactive else DEVNULL,
                stderr=None if interactive else DEVNULL,
            )
        except EndlessError as error:
            raise self._fault(str(error)) from None
        except OSError:
            raise self._fault("is not installed") from None
        if ended.code:
            raise self._fault(f"ended with exit code {ended.code}")
        return self._read(ended.output, version)

    def _info(self, interactive: bool) -> dict[str, Any]:
        """Return what the plugin is told, as kubectl does."""
        info: dict[str, Any] = {"interactive": interactive}
        if self._spec.get("provideClusterInfo"):
            extensions = self._cluster.get("extensions") or []
            own = [one for one in extensions if one.get("name") == "client.authentication.k8s.io/exec"]
            known = {key: value for key, value in self._cluster.items() if key != "extensions"}
            info["cluster"] = {**known, **({"config": own[0].get("extension")} if own else {})}
        return info

    def _read(self, output: bytes, version: str) -> Credential:
        try:
            answer = json.loads(output)
            told, status = answer["apiVersion"], answer["status"]
            found = Credential(
                token=str(status.get("token") or ""),
                certificate=str(status.get("clientCertificateData") or ""),
                key=str(status.get("clientKeyData") or ""),
                expires=_time(status.get("expirationTimestamp")),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._fault("gave no credentials") from None
        if told != version:
            raise self._fault("speaks another version of the API than the kubeconfig names")
        if not found.token and not (found.certificate and found.key):
            raise self._fault("gave no credentials")
        return found

    def _fault(self, what: str) -> TargetError:
        return TargetError(
            f"the kubeconfig's exec plugin {what}",
            where=self._where,
            hint="log in to the cluster again; `kubectl config view --minify` shows the plugin's command, "
            "which says more when you run it yourself",
        )


def _is_over(held: Credential, now: datetime) -> bool:
    """Whether a token has expired; a certificate is part of connections that are open, and is kept."""
    return bool(held.token and held.expires and held.expires - _EARLY <= now)


def _time(text: Any) -> datetime | None:
    """Read a time as Kubernetes writes it; without one, credentials last as long as the command."""
    try:
        found = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return found.replace(tzinfo=found.tzinfo or timezone.utc)
