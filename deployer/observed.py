"""What is observed of a service, read from its InferenceService in the shape that KServe gives it. Pure.

Both targets speak of a service in that shape, so there is one definition of Ready.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, structs

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


class Revision(Struct, frozen=True):
    """One revision of a service, its release, and how many of its pods are ready and exist."""

    name: str
    release: str | None
    ready: int = 0
    pods: int = 0


class Observed(Struct, frozen=True, kw_only=True):
    """What is wanted of a service, and what is observed.

    The release that is `wanted` is to get `percent` of the requests and `stable`, the release that was fully
    rolled out last, the rest; `traffic` is what they get. `replicas` counts ready and wanted pods. `holding`
    names pods that are being deleted and still hold their resources. `given_up` says that the target does not
    start a failed release again by itself. `seconds` is how long this state has lasted, in steps of 30; `log`
    the last lines of what failed.
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
        """The release that answers most of the requests, or None where no release answers."""
        most = max(self.traffic, key=lambda share: share.percent, default=None)
        return most.release if most and most.percent else None


class Capabilities(Struct, frozen=True, kw_only=True):
    """What a target can do, found out rather than assumed."""

    deployment_mode: str
    canary: bool
    local_storage_only: bool = False  # it reads models from this machine's disk alone


class Live(Struct, frozen=True):
    """A service on a target: its InferenceService as it is, and what is observed of it."""

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


def _split_fault(seen: Observed) -> str:
    """Return how the observed traffic differs from the wanted traffic, or nothing."""
    foreign = sum(share.percent for share in seen.traffic if share.foreign)
    # What somebody's canary leaves of the requests is for the wanted release, be it nothing.
    ours = [share for share in seen.traffic if not share.foreign and (share.percent or foreign >= 100)]
    others = [share for share in ours if share.release != seen.wanted]
    percent = sum(share.percent for share in ours) - sum(share.percent for share in others)
    if seen.percent >= 100:
        right = bool(ours) and not others
    else:
        stray = [share for share in others if seen.stable and share.release != seen.stable]
        right = percent == seen.percent and not stray
    wanted = f"{seen.percent} % {seen.wanted}"
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
