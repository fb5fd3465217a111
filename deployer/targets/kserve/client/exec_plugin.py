"""Runs a kubeconfig's exec plugin for credentials, again when they expire. No error shows its output."""

from __future__ import annotations

import json
import os
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from deployer.errors import TargetError
from deployer.patience import Patience
from deployer.processes import DEVNULL, EndlessError, ask_program

_LOGIN = 600.0  # seconds for a person to log in
_EARLY = timedelta(seconds=10)  # a token is replaced this long before it expires
_NO_CREDENTIALS = "returned no credentials"
_FIELDS = {
    "certificate": "clientCertificateData",
    "key": "clientKeyData",
    "expiration": "expirationTimestamp",
}


class Credential(Struct, frozen=True, rename=_FIELDS):
    """A bearer token, or a certificate with its key, both PEM, and when they expire."""

    token: str | None = None
    certificate: str | None = None
    key: str | None = None
    expiration: str | None = None

    def has_expired(self, now: datetime) -> bool:
        """Return whether a token has expired; a certificate is part of open connections, and is kept."""
        try:
            end = datetime.fromisoformat((self.expiration or "").replace("Z", "+00:00"))
        except ValueError:  # without a valid time, credentials last as long as the command
            return False
        return bool(self.token) and end.replace(tzinfo=end.tzinfo or timezone.utc) - _EARLY <= now


class _Answer(Struct, frozen=True, rename="camel"):
    api_version: str
    status: Credential


class ExecPlugin:
    """The plugin of a user's entry; its relative paths start at the `folder` of the kubeconfig."""

    def __init__(
        self, spec: Any, cluster: dict[str, Any], *, folder: Path, where: str, patience: Patience
    ) -> None:
        self._spec: dict[str, Any] = spec if isinstance(spec, dict) else {}
        self._cluster, self._folder, self._where, self._patience = cluster, folder, where, patience
        self._held: Credential | None = None
        self._lock = threading.Lock()

    def credential(self) -> Credential:
        """Return credentials that have not expired. Thread-safe. Raises TargetError."""
        with self._lock:
            if self._held is None or self._held.has_expired(self._patience.clock.utc()):
                self._held = self._run()
            return self._held

    def _run(self) -> Credential:
        try:
            command = [str(self._spec["command"]), *map(str, self._spec.get("args") or [])]
            version = str(self._spec["apiVersion"])
            environment = {str(one["name"]): str(one["value"]) for one in self._spec.get("env") or []}
        except (KeyError, TypeError):
            raise self._fault(f"{_NO_CREDENTIALS}: its entry is incomplete") from None
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
        """Return the plugin's input, as kubectl writes it."""
        info: dict[str, Any] = {"interactive": interactive}
        if self._spec.get("provideClusterInfo"):
            extensions = self._cluster.get("extensions") or []
            own = [one for one in extensions if one.get("name") == "client.authentication.k8s.io/exec"]
            known = {key: value for key, value in self._cluster.items() if key != "extensions"}
            info["cluster"] = {**known, **({"config": own[0].get("extension")} if own else {})}
        return info

    def _read(self, output: bytes, version: str) -> Credential:
        try:
            answer = msgspec.json.decode(output, type=_Answer)
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise self._fault(_NO_CREDENTIALS) from None
        if answer.api_version != version:
            raise self._fault("answered in another API version than the kubeconfig names")
        found = answer.status
        if not found.token and not (found.certificate and found.key):
            raise self._fault(_NO_CREDENTIALS)
        return found

    def _fault(self, what: str) -> TargetError:
        return TargetError(
            f"the kubeconfig's exec plugin {what}",
            where=self._where,
            hint="Log in to the cluster again. To see the plugin's messages, run its command yourself: "
            "`kubectl config view --minify` prints it.",
        )
