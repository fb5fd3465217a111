"""Reads the state of a service from its InferenceService. Pure.

Both targets write the InferenceService in the same form, so there is one definition of Ready.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, structs

Document = dict[str, Any]  # a Kubernetes object as plain JSON

GPU = "nvidia.com/gpu"  # the resource that a GPU is
RELEASE_LABEL = "kdeploy.dev/release"
NOT_SWITCHED = "TrafficNotSwitched"
NOT_RUNNING = "SupervisorNotRunning"  # on a local target


class Reference(Struct, frozen=True):
    """The name of a service on a target."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Phase(enum.Enum):
    """The state of a service, with regard to the wanted release."""

    PENDING = "Pending"
    PROGRESSING = "Progressing"
    READY = "Ready"
    FAILED = "Failed"
    STOPPED = "Stopped"


class Share(Struct, frozen=True):
    """The percentage of requests that one revision gets.

    `foreign`: they come from a route that is not KServe's.
    """

    revision: str
    release: str | None
    percent: int
    foreign: bool = False


class Revision(Struct, frozen=True):
    """A revision of a service, its release, and the numbers of its ready pods and of all its pods."""

    name: str
    release: str | None
    ready: int = 0
    pods: int = 0


class Observed(Struct, frozen=True, kw_only=True):
    """The wanted and the actual state of a service.

    The release `wanted` should get `percent` of the requests, and `stable`, the last fully rolled out
    release, the rest; `traffic` is the actual split. `replicas` counts ready and wanted pods. `holding`
    names pods that are terminating and still hold their resources. `given_up`: the target does not restart a
    failed release. `seconds` is how long this state has lasted, in steps of 30. `log` has the last lines of
    the failed container.
    """

    reference: Reference
    wanted: str | None
    stable: str | None = None
    candidate: str | None = None
    percent: int = 100
    traffic: tuple[Share, ...] = ()
    phase: Phase
    reason: str = ""
    message: str = ""
    hint: str = ""
    url: str | None = None
    revision: str | None = None
    revisions: tuple[Revision, ...] = ()
    replicas: tuple[int, int] = (0, 0)
    holding: tuple[str, ...] = ()
    given_up: bool = False
    seconds: int = 0
    log: tuple[str, ...] = ()

    @property
    def serving(self) -> str | None:
        """The release that answers most of the requests, or None if no release does."""
        most = max(self.traffic, key=lambda share: share.percent, default=None)
        return most.release if most and most.percent else None

    @property
    def explanation(self) -> str:
        """Why the service is in its phase: what is under way, or the reason and message of a failure."""
        if self.phase is Phase.PROGRESSING and self.message:
            return self.message
        return ": ".join(text for text in (self.reason, self.message) if text)


class Capabilities(Struct, frozen=True, kw_only=True):
    """The detected features of a target."""

    deployment_mode: str
    canary: bool
    local_storage_only: bool = False  # the model store must be on this machine's disk
    assigns_user: bool = False  # the namespace assigns the user that pods run as


class Live(Struct, frozen=True):
    """A service on a target: its live InferenceService, and the state read from it."""

    document: Document
    status: Observed


def read_observed(
    document: Document,
    releases: Mapping[str, str | None],
    *,
    predictor: Document | None = None,
    shares: Sequence[Share] | None = None,
    stable: str | None = None,
) -> Observed:
    """Read the state of a service from its InferenceService.

    `releases` maps revisions to their releases. `predictor` and `shares` replace what KServe does not report
    in Standard mode: revisions and traffic. `stable` is the recorded stable release; by default it is that
    of the revision that was rolled out last.

    Ready means: the newest revision is ready and belongs to the wanted release, it gets the wanted
    percentage of the requests, and the stable release gets the rest.
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
    wanted = metadata.get("labels", {}).get(RELEASE_LABEL)
    stable = stable or releases.get(rolled_out)
    seen = Observed(
        reference=Reference(metadata.get("namespace", "default"), metadata.get("name", "")),
        wanted=wanted,
        candidate=wanted if wanted != stable else None,
        phase=Phase.PROGRESSING,
        url=status.get("url"),
        revision=predictor.get("latestReadyRevision") or None,
        percent=_wanted_percent(document, predictor),
        stable=stable,
        traffic=tuple(shares),
    )
    phase, reason, message = _phase(status, predictor)
    if phase is Phase.READY:
        newest = releases.get(predictor["latestReadyRevision"])
        if newest is None or newest != seen.wanted:
            phase, reason = Phase.PROGRESSING, "RevisionNotReady"
            message = f"the newest ready revision belongs to release {newest or 'unknown'}"
        elif fault := _split_fault(seen):
            phase, reason, message = Phase.PROGRESSING, NOT_SWITCHED, fault
    return structs.replace(seen, phase=phase, reason=reason, message=message)


def _wanted_percent(document: Document, predictor: Document) -> int:
    """Return the newest revision's wanted percentage: 100 if it is the only revision."""
    percent = document.get("spec", {}).get("predictor", {}).get("canaryTrafficPercent")
    rolled_out = predictor.get("latestRolledoutRevision")
    only = rolled_out in (None, "", predictor.get("latestCreatedRevision"))
    return 100 if percent is None or only else int(percent)


def _split_fault(seen: Observed) -> str:
    """Return how the actual traffic differs from the wanted traffic, or an empty string."""
    foreign = sum(share.percent for share in seen.traffic if share.foreign)
    # A foreign route can leave the wanted release any percentage, even 0.
    ours = [share for share in seen.traffic if not share.foreign and (share.percent or foreign >= 100)]
    others = [share for share in ours if share.release != seen.wanted]
    percent = sum(share.percent for share in ours) - sum(share.percent for share in others)
    if seen.percent >= 100:
        right = bool(ours) and not others
    else:
        stray = [share for share in others if seen.stable and share.release != seen.stable]
        right = percent == seen.percent and not stray
    rest = f", {100 - seen.percent}% {seen.stable}" if seen.percent < 100 and seen.stable else ""
    return "" if right else f"waiting for the traffic to be {seen.percent}% {seen.wanted}{rest}"


def _phase(status: Document, predictor: Document) -> tuple[Phase, str, str]:
    """Return the phase, its reason and its message, from KServe's conditions.

    Of KServe's model states only InvalidSpec counts: the others do not name their revision and can be
    outdated. A failed load that names the newest revision, as on the local target, counts.
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
