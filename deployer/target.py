"""What every target is: something that takes the documents of a release and comes to serve it.

Both targets speak of a service in the shape of KServe's InferenceService, so one pure function
reads the status of either.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct, structs

from deployer.errors import KdeployError
from deployer.release import Traffic

Document = dict[str, Any]  # a Kubernetes object as plain JSON

RELEASE_LABEL = "kdeploy.dev/release"
NOT_SWITCHED = "TrafficNotSwitched"
NOT_RUNNING = "SupervisorNotRunning"  # the reason of everything on a local target whose supervisor is down


class Reference(Struct, frozen=True):
    """The name of a service on a target."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Phase(enum.Enum):
    """The state of a service, seen from the release that is wanted."""

    PENDING = "Pending"
    PROGRESSING = "Progressing"
    READY = "Ready"
    FAILED = "Failed"
    STOPPED = "Stopped"


class Share(Struct, frozen=True):
    """The percentage of requests that one revision, and so one release, gets.

    `foreign` says that somebody else sends them there: that part of the split is not kdeploy's.
    """

    revision: str
    release: str | None
    percent: int
    foreign: bool = False


class Status(Struct, frozen=True, kw_only=True):
    """What is wanted of a service, and what is observed.

    `release` is wanted to get `percent` of the requests and `stable`, the release that was fully rolled out
    last, the rest; `traffic` is what they get. `replicas` counts ready and wanted pods; `running` are the
    releases that have pods, ready or not. `holding` names pods that are being deleted and still hold their
    resources. `given_up` says that the target does not start a failed release again by itself. `seconds` is
    how long this state has lasted, in steps of 30; `log` the last lines of what failed.
    """

    reference: Reference
    release: str | None
    phase: Phase
    reason: str = ""
    message: str = ""
    hint: str = ""
    url: str | None = None
    revision: str | None = None
    percent: int = 100
    stable: str | None = None
    traffic: tuple[Share, ...] = ()
    replicas: tuple[int, int] = (0, 0)
    running: tuple[str | None, ...] = ()
    holding: tuple[str, ...] = ()
    given_up: bool = False
    seconds: int = 0
    log: tuple[str, ...] = ()

    @property
    def serving(self) -> str | None:
        """The release that answers most of the requests, or None where no release answers."""
        most = max(self.traffic, key=lambda share: share.percent, default=None)
        return most.release if most and most.percent else None


class Live(Struct, frozen=True):
    """A service on a target: its InferenceService as it is, and what is observed of it."""

    document: Document
    status: Status


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

    `stable` is the release that gets the rest of the requests. `account` is the cluster's user, `since` the
    time of the outcome; no Secret is among the documents.
    """

    number: int = 0
    release: str = ""
    archive: str = ""
    storage_uri: str = ""
    percent: int = 100
    stable: str | None = None
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

    def serves(self, documents: Sequence[Document], live: Live) -> bool:
        """Return whether a live service is Ready with just these documents: applying them changes nothing."""

    def preview(self, documents: Sequence[Document]) -> list[tuple[Document | None, Document]]:
        """Return each document as it is, None where it is not there, and as applying would leave it."""

    def apply(
        self, documents: Sequence[Document], origin: Origin | None = None, traffic: Traffic | None = None
    ) -> Reference:
        """Make the documents the wanted state, and an entry of the history. Returns the service's name.

        Idempotent. Raises ConflictError, with nothing changed, where somebody else is just doing it.
        """

    def history(self, reference: Reference) -> list[Entry]:
        """Return what was applied to a service, the oldest first."""

    def note_outcome(self, reference: Reference, outcome: str, number: int | None = None) -> None:
        """Note the outcome of an entry of the history: by default of the one that was applied here last."""

    def watch(self, reference: Reference, timeout: float, stable: str | None = None) -> Iterator[Status]:
        """Yield the status now and at every change; end after `timeout` seconds.

        `stable` is the release that is to get the rest of the requests, where it is known.
        """

    def get(self, reference: Reference) -> Live | None:
        """Return the service as it is, or None where there is none."""

    def inspect(self, reference: Reference) -> Live | None:
        """Return the service as it is, with all that tells why it is not ready; None where there is none."""

    def holding(self, reference: Reference) -> Sequence[str]:
        """Return what of a service is being deleted and still holds its resources."""

    def list(self, namespace: str | None = None) -> list[Status]:
        """Return the state of the services of one namespace, or of all."""

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


def read_status(
    document: Document,
    releases: Mapping[str, str | None],
    *,
    predictor: Document | None = None,
    shares: Sequence[Share] | None = None,
    stable: str | None = None,
) -> Status:
    """Read what an InferenceService says about itself, in KServe's words, on either kind of target.

    `releases` maps revisions to their releases. `predictor` and `shares` stand in where KServe reports
    neither revisions nor traffic, as in Standard mode. `stable` is the release that is recorded as stable;
    where it is not given, the revision that was rolled out last names it.

    Ready means: the newest revision is of the wanted release and ready, it gets the percentage of requests
    that is wanted, and the stable release gets all the rest.
    """
    metadata, status = document.get("metadata", {}), document.get("status", {})
    if predictor is None:
        predictor = status.get("components", {}).get("predictor", {})
    if shares is None:
        shares = [
            Share(name, releases.get(name), line.get("percent") or 0)
            for line in predictor.get("traffic", [])
            for name in [line.get("revisionName", "")]
        ]
    rolled_out = predictor.get("latestRolledoutRevision", "")
    seen = Status(
        reference=Reference(metadata.get("namespace", "default"), metadata.get("name", "")),
        release=metadata.get("labels", {}).get(RELEASE_LABEL),
        phase=Phase.PROGRESSING,
        url=status.get("url"),
        revision=predictor.get("latestReadyRevision") or None,
        percent=_wanted_percent(document, predictor),
        stable=stable or releases.get(rolled_out),
        traffic=tuple(shares),
    )
    phase, reason, message = _phase(status, predictor)
    if phase is Phase.READY:
        newest = releases.get(predictor["latestReadyRevision"])
        if newest is None or newest != seen.release:
            phase, reason = Phase.PROGRESSING, "RevisionNotReady"
            message = f"the newest ready revision is of release {newest or 'unknown'}"
        elif fault := _split_fault(seen):
            phase, reason, message = Phase.PROGRESSING, NOT_SWITCHED, fault
    return structs.replace(seen, phase=phase, reason=reason, message=message)


def _wanted_percent(document: Document, predictor: Document) -> int:
    """Return the percentage that the newest revision is wanted to get; with nothing beside it, all."""
    percent = document.get("spec", {}).get("predictor", {}).get("canaryTrafficPercent")
    rolled_out = predictor.get("latestRolledoutRevision")
    alone = rolled_out in (None, "", predictor.get("latestCreatedRevision"))
    return 100 if percent is None or alone else int(percent)


def _split_fault(seen: Status) -> str:
    """Return how the observed traffic differs from the wanted traffic, or nothing."""
    foreign = sum(share.percent for share in seen.traffic if share.foreign)
    # What somebody's canary leaves of the requests is for the wanted release, be it nothing.
    ours = [share for share in seen.traffic if not share.foreign and (share.percent or foreign >= 100)]
    others = [share for share in ours if share.release != seen.release]
    percent = sum(share.percent for share in ours) - sum(share.percent for share in others)
    if seen.percent >= 100:
        right = bool(ours) and not others
    else:
        stray = [share for share in others if seen.stable and share.release != seen.stable]
        right = percent == seen.percent and not stray
    wanted = f"{seen.percent} % {seen.release}"
    if seen.percent < 100 and seen.stable:
        wanted += f", {100 - seen.percent} % {seen.stable}"
    return "" if right else f"waiting for the traffic to be {wanted}"


def _phase(status: Document, predictor: Document) -> tuple[Phase, str, str]:
    """Read the phase from KServe's conditions.

    Of KServe's verdicts on models only InvalidSpec counts: the others say neither when they were written nor
    which revision they are about. One that names the newest revision, as the local target's does, counts.
    """
    if not status:
        return Phase.PENDING, "", ""
    conditions = {one["type"]: one for one in status.get("conditions", [])}
    ready, model = conditions.get("Ready", {}), status.get("modelStatus", {})
    failure = model.get("lastFailureInfo", {})
    created = predictor.get("latestCreatedRevision")
    if conditions.get("Stopped", {}).get("status") == "True" or ready.get("reason") == NOT_RUNNING:
        return Phase.STOPPED, ready.get("reason", "Stopped"), ready.get("message", "")
    about_newest = created and failure.get("modelRevisionName") == created
    if model.get("transitionStatus") == "InvalidSpec" or (
        model.get("transitionStatus") == "BlockedByFailedLoad" and about_newest
    ):
        return Phase.FAILED, failure.get("reason") or model["transitionStatus"], failure.get("message", "")
    if ready.get("status") == "True" and created and predictor.get("latestReadyRevision") == created:
        return Phase.READY, "", ""
    return Phase.PROGRESSING, ready.get("reason", ""), ready.get("message", "")
