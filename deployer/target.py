"""What every target is: something that takes the documents of a release and comes to serve it.

Both targets speak of a service in the shape of KServe's InferenceService, so one pure function
reads the status of either.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from msgspec import Struct

from deployer.errors import KdeployError

Document = dict[str, Any]  # a Kubernetes object as plain JSON

RELEASE_LABEL = "kdeploy.dev/release"


class Reference(Struct, frozen=True):
    """The name of a service on a target."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Phase(enum.Enum):
    """Where a service stands, seen from the release that is wanted."""

    PENDING = "Pending"
    PROGRESSING = "Progressing"
    READY = "Ready"
    FAILED = "Failed"


class Share(Struct, frozen=True):
    """One line of a traffic split: a revision, its release, its percent, KServe's tag."""

    revision: str
    release: str | None
    percent: int
    latest: bool = False


class Status(Struct, frozen=True, kw_only=True):
    """A service as its InferenceService document tells it."""

    reference: Reference
    release: str | None
    phase: Phase
    reason: str = ""
    message: str = ""
    url: str | None = None
    revision: str | None = None
    traffic: tuple[Share, ...] = ()
    log: tuple[str, ...] = ()  # the last lines of what failed


class Tunnel(Protocol):
    """A way to a server that has no address here. Safe to share by threads."""

    @property
    def fault(self) -> KdeployError | None:
        """Why a connection that was opened came to nothing, where it did."""

    def open(self) -> socket.socket:
        """Open one more connection. Raises TargetError."""


class Endpoint(Struct, frozen=True):
    """Where predictions are asked for: a base URL, the Host header if the ingress wants one, a way there."""

    url: str
    host: str | None = None
    tunnel: Tunnel | None = None


class Capabilities(Struct, frozen=True, kw_only=True):
    """What a target can do, found out rather than assumed."""

    deployment_mode: str
    canary: bool
    own_disk: bool = False  # it reads models from this machine's disk alone


class Origin(Struct, frozen=True, kw_only=True):
    """Where a rollout comes from: `user@machine`, the model archive's digest, the project's commit."""

    who: str = ""
    archive: str = ""
    commit: str = ""


class Entry(Struct, frozen=True, kw_only=True):
    """One rollout in a target's history. Times are UTC, as Kubernetes writes them.

    `account` is the cluster's user, `since` the time of the outcome; no Secret is among the documents.
    """

    number: int = 0
    release: str = ""
    archive: str = ""
    storage_uri: str = ""
    percent: int = 100
    who: str = ""
    account: str = ""
    commit: str = ""
    when: str = ""
    outcome: str = ""
    since: str = ""
    documents: tuple[Document, ...] = ()


class Target(Protocol):
    """Where releases are served. Every method may raise TargetError."""

    @property
    def namespace(self) -> str:
        """The namespace that references without one are in."""

    def capabilities(self) -> Capabilities:
        """Find out what the target can do. Changes nothing."""

    def check(self, documents: Sequence[Document], *, wait: bool = True) -> Sequence[str]:
        """Refuse documents that could not come to serve; return what may go wrong nevertheless.

        Changes nothing. `wait`: whether it is to be watched, too. Raises KdeployError for all faults at once.
        """

    def serves(self, documents: Sequence[Document]) -> bool:
        """Return whether just these documents serve already, so that applying them would change nothing."""

    def preview(self, documents: Sequence[Document]) -> list[tuple[Document | None, Document]]:
        """Return each document as it is, None where it is not there, and as applying would leave it."""

    def apply(self, documents: Sequence[Document], origin: Origin | None = None) -> Reference:
        """Make the documents the wanted state, and an entry of the history. Returns the service's name.

        Idempotent. Raises ConflictError, with nothing changed, where somebody else is just doing it.
        """

    def history(self, reference: Reference) -> list[Entry]:
        """Return what was applied to a service, the oldest first."""

    def note_outcome(self, reference: Reference, outcome: str) -> None:
        """Note in the history how the wait for what was applied here last has ended."""

    def watch(self, reference: Reference, timeout: float) -> Iterator[Status]:
        """Yield the status now and at every change; end after `timeout` seconds."""

    def get(self, reference: Reference) -> Document | None:
        """Return the InferenceService with its status, or None where there is none."""

    def list(self, namespace: str | None = None) -> list[Document]:
        """Return the InferenceServices of one namespace, or of all."""

    def delete(self, reference: Reference) -> bool:
        """Remove the service and what was made for it. False where there was none."""

    def logs(self, reference: Reference, *, follow: bool = False, previous: bool = False) -> Iterator[str]:
        """Yield the log lines of what serves and of what fails to.

        With `follow` they go on as they come, until the service is deleted; `previous` are those before.
        """

    def ingress(self, reference: Reference) -> Endpoint:
        """Return the way in through the ingress. Raises NotFoundError or TargetError."""

    def direct(self, reference: Reference) -> Endpoint:
        """Return the way to the serving TorchServe itself."""

    def releases_in_use(self) -> frozenset[str]:
        """Return `NAME/ID` of every release that is served, wanted, in a history or in a storage URI."""


def read_status(document: Document) -> Status:
    """Read the status of an InferenceService document, whoever wrote it.

    Ready is believed only for the release that the document's own label names: every traffic share
    of the latest revision must carry it.
    """
    metadata = document.get("metadata", {})
    status = document.get("status", {})
    predictor = status.get("components", {}).get("predictor", {})
    release = metadata.get("labels", {}).get(RELEASE_LABEL)
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    ready = conditions.get("Ready", {})
    shares = tuple(
        Share(
            revision=share.get("revisionName", ""),
            release=share.get("release"),
            percent=share.get("percent", 0),
            latest=bool(share.get("latestRevision")),
        )
        for share in predictor.get("traffic", [])
    )
    phase, reason, message = _phase(status, ready)
    others = [share for share in shares if share.latest and share.release not in (None, release)]
    if phase is Phase.READY and others:
        phase, reason = Phase.PROGRESSING, "RevisionNotReady"
        message = f"{others[0].revision} of release {others[0].release} is the newest that is ready"
    return Status(
        reference=Reference(metadata.get("namespace", "default"), metadata.get("name", "")),
        release=release,
        phase=phase,
        reason=reason,
        message=message,
        url=status.get("url"),
        revision=predictor.get("latestReadyRevision"),
        traffic=shares,
    )


def _phase(status: Document, ready: Document) -> tuple[Phase, str, str]:
    model = status.get("modelStatus", {})
    if model.get("transitionStatus") in ("BlockedByFailedLoad", "InvalidSpec"):
        failure = model.get("lastFailureInfo", {})
        return Phase.FAILED, failure.get("reason", model["transitionStatus"]), failure.get("message", "")
    if not status:
        return Phase.PENDING, "", ""
    predictor = status.get("components", {}).get("predictor", {})
    newest_serves = predictor.get("latestReadyRevision") == predictor.get("latestCreatedRevision") is not None
    if ready.get("status") == "True" and newest_serves:
        return Phase.READY, "", ""
    return Phase.PROGRESSING, ready.get("reason", ""), ready.get("message", "")
