"""TorchServe's management API, for `kdeploy models`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from deployer.errors import ConflictError, KdeployError, NotFoundError, TargetError
from deployer.patience import PATIENCE, Patience
from deployer.predict.connection import Connection, Response
from deployer.predict.predict_errors import read_refusal
from deployer.targets.protocols import Endpoint

TIMEOUT = 300.0  # seconds; registering and scaling wait until the workers have loaded the model
PAGE = 100  # models in one response

_OTHER_PORT = "Run `kdeploy status` and compare the URL: this is not the management port."
_HINTS = {
    "ModelNotFoundException": "Run `kdeploy models list` to list the models.",
    "ModelVersionNotFoundException": "Run `kdeploy models describe` to list the versions.",
    "ConflictStatusException": "Run `kdeploy models unregister` first.",
    "InvalidModelVersionException": "Make another version the default: `kdeploy models set-default`.",
    "InvalidKeyException": "Set `disable_token_authorization = true` in `[torchserve]`: a token is required.",
    "ResourceNotFoundException": _OTHER_PORT,
    "MethodNotAllowedException": "Set `enable_model_api = true` in `[torchserve]`, then roll out again.",
}
_KINDS: dict[int, type[KdeployError]] = {404: NotFoundError, 409: ConflictError}

Document = TypeVar("Document")


class RegisteredModel(Struct, frozen=True):
    """A model that TorchServe knows, and the archive that it came from."""

    name: str
    url: str


class _Entry(Struct, rename="camel"):
    model_name: str
    model_url: str


class _Page(Struct, rename="camel"):
    models: list[_Entry]
    next_page_token: str | None = None


class _Status(Struct):
    status: str


class Models:
    """Calls the management API at an endpoint.

    Every method raises NotFoundError for an unknown model or version, ConflictError for one that exists
    already, and TargetError for everything else.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout: float = TIMEOUT,
        headers: Mapping[str, str] | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        self._connection = Connection(
            endpoint, failure=TargetError, timeout=timeout, headers=headers, patience=patience
        )

    def close(self) -> None:
        """Close the idle connections."""
        self._connection.close()

    def describe(self, name: str, version: str | None = None) -> list[dict[str, Any]]:
        """Return a document for the default version, for the one named, or for every one (`all`)."""
        return self._call(list[dict[str, Any]], "GET", _path(name, version))

    def register(
        self,
        url: str,
        *,
        model_name: str | None = None,
        initial_workers: int = 1,
        batch_size: int | None = None,
        max_batch_delay: int | None = None,
    ) -> str:
        """Register an archive of the model store, or at an allowed URL; return TorchServe's message.

        Returns when the workers have loaded the model. `max_batch_delay` is in milliseconds.
        """
        query = {
            "url": url,
            "model_name": model_name,
            "initial_workers": initial_workers,
            "batch_size": batch_size,
            "max_batch_delay": max_batch_delay,
            "synchronous": "true",
        }
        return self._call(_Status, "POST", "/models", query).status

    def scale(
        self,
        name: str,
        version: str | None = None,
        *,
        min_workers: int | None = None,
        max_workers: int | None = None,
    ) -> str:
        """Change the number of a model's workers and wait for them; return TorchServe's message."""
        query = {"min_worker": min_workers, "max_worker": max_workers, "synchronous": "true"}
        return self._call(_Status, "PUT", _path(name, version), query).status

    def set_default(self, name: str, version: str) -> str:
        """Make a version the default; return TorchServe's message."""
        return self._call(_Status, "PUT", f"{_path(name, version)}/set-default").status

    def unregister(self, name: str, version: str | None = None) -> str:
        """Remove a model, or one of its versions; return TorchServe's message."""
        return self._call(_Status, "DELETE", _path(name, version)).status

    def list(self) -> list[RegisteredModel]:
        """Return all registered models, from all pages."""
        found: dict[str, RegisteredModel] = {}
        token: str | None = None
        while True:
            page = self._call(_Page, "GET", "/models", {"limit": PAGE, "next_page_token": token})
            known, token = len(found), page.next_page_token
            found |= {one.model_name: RegisteredModel(one.model_name, one.model_url) for one in page.models}
            if token is None or len(found) == known:
                return [*found.values()]

    def _call(
        self,
        kind: type[Document],
        method: str,
        path: str,
        query: Mapping[str, str | int | None] | None = None,
    ) -> Document:
        given = {key: value for key, value in (query or {}).items() if value is not None}
        response = self._connection.send(method, path, query=given)
        if not 200 <= response.status < 300:
            raise _refused(response)
        try:
            return msgspec.json.decode(response.body, type=kind)
        except (ValueError, RecursionError) as error:
            start = response.body[:80].decode(errors="replace")
            raise TargetError(f"the response is not TorchServe's: {start!r}", hint=_OTHER_PORT) from error


def _path(name: str, version: str | None) -> str:
    return "/".join(["/models", *(quote(part, safe="") for part in (name, version) if part)])


def _refused(response: Response) -> KdeployError:
    refusal = read_refusal(response.status, response.headers, response.body)
    kind = _KINDS.get(response.status, TargetError)
    if refusal.kind == "ResourceNotFoundException":
        kind = TargetError
    reason = refusal.text or f"HTTP {response.status} without a reason"
    hint = _HINTS.get(refusal.kind, "Run `kdeploy logs` to see why.")
    return kind(f"{refusal.sender}: {reason}", hint=hint)
