"""TorchServe's management API: what `kdeploy models` speaks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from msgspec import Struct

from deployer.errors import ConflictError, KdeployError, NotFoundError, TargetError
from deployer.patience import PATIENCE, Patience
from deployer.predict.connection import Answer, Connection
from deployer.predict.predict_errors import read_refusal
from deployer.targets.protocols import Endpoint

TIMEOUT = 300.0  # seconds; registering and scaling wait until the workers have loaded the model
PAGE = 100  # models in one answer

_HINTS = {
    "ModelNotFoundException": "list the models: kdeploy models list",
    "ModelVersionNotFoundException": "list the versions: kdeploy models describe",
    "ConflictStatusException": "unregister it first: kdeploy models unregister",
    "InvalidModelVersionException": "make another version the default first: kdeploy models set-default",
    "InvalidKeyException": "a token is required: set disable_token_authorization = true in [torchserve]",
    "ResourceNotFoundException": "this is not the management port: see kdeploy status",
    "MethodNotAllowedException": "set enable_model_api = true in [torchserve], then kdeploy rollout",
}
_KINDS: dict[int, type[KdeployError]] = {404: NotFoundError, 409: ConflictError}


class RegisteredModel(Struct, frozen=True):
    """A model that TorchServe knows, and the archive that it came from."""

    name: str
    url: str


class Models:
    """Speaks to the management API at an endpoint.

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
        document = self._call("GET", _path(name, version))
        if not isinstance(document, list) or not all(isinstance(entry, dict) for entry in document):
            raise _not_torchserve(document)
        return document

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
        return self._status("POST", "/models", query)

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
        return self._status("PUT", _path(name, version), query)

    def set_default(self, name: str, version: str) -> str:
        """Make a version the default; return TorchServe's message."""
        return self._status("PUT", f"{_path(name, version)}/set-default")

    def unregister(self, name: str, version: str | None = None) -> str:
        """Remove a model, or one of its versions; return TorchServe's message."""
        return self._status("DELETE", _path(name, version))

    def list(self) -> list[RegisteredModel]:
        """Return all registered models, however many pages they fill."""
        found: dict[str, RegisteredModel] = {}
        token: str | None = None
        while True:
            document = self._call("GET", "/models", {"limit": PAGE, "next_page_token": token})
            try:
                page = [
                    RegisteredModel(entry["modelName"], entry["modelUrl"]) for entry in document["models"]
                ]
                token = document.get("nextPageToken")
            except (AttributeError, KeyError, TypeError) as error:
                raise _not_torchserve(document) from error
            known = len(found)
            found |= {model.name: model for model in page}
            if token is None or len(found) == known:
                return [*found.values()]

    def _status(self, method: str, path: str, query: Mapping[str, str | int | None] | None = None) -> str:
        document = self._call(method, path, query)
        if not isinstance(document, dict) or not isinstance(document.get("status"), str):
            raise _not_torchserve(document)
        status: str = document["status"]
        return status

    def _call(self, method: str, path: str, query: Mapping[str, str | int | None] | None = None) -> Any:
        given = {key: value for key, value in (query or {}).items() if value is not None}
        answer = self._connection.send(method, path, query=given)
        if not 200 <= answer.status < 300:
            raise _refused(answer)
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            raise _not_torchserve(answer.body[:80].decode(errors="replace")) from error


def _path(name: str, version: str | None) -> str:
    return "/".join(["/models", *(quote(part, safe="") for part in (name, version) if part)])


def _not_torchserve(document: Any) -> TargetError:
    return TargetError(
        f"the answer is not TorchServe's: {str(document)[:80]!r}",
        hint="this is not the management port: see kdeploy status",
    )


def _refused(answer: Answer) -> KdeployError:
    refusal = read_refusal(answer.status, answer.headers, answer.body)
    kind = _KINDS.get(answer.status, TargetError)
    if refusal.kind == "ResourceNotFoundException":
        kind = TargetError
    reason = refusal.text or f"HTTP {answer.status} without a reason"
    return kind(f"{refusal.speaker} says: {reason}", hint=_HINTS.get(refusal.kind, "see why: kdeploy logs"))
