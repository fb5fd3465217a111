"""The observed state of a service, and its InferenceService with the status that KServe writes. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, structs

from deployer.observed import NOT_RUNNING, Document, Observed, Phase, Revision, read_observed
from deployer.targets.local.revisions import Line, Record, hosts

LOGS = "Fix the cause, then run `kdeploy rollout` again. Run `kdeploy logs` to see TorchServe's log."


class Seen(Struct, frozen=True):
    """Whether a revision's TorchServe is ready, or why not."""

    ready: bool
    reason: str = ""


def observe(
    record: Record, document: Document, seen: Mapping[str, Seen], *, stable: str | None = None
) -> Observed:
    """Return the observed state of a service; `document` is from `build_document`."""
    releases = {revision.name: revision.release for revision in record.revisions}
    observed = read_observed(document, releases, stable=stable)
    revisions = tuple(
        Revision(name, releases.get(name), ready=int(s.ready), pods=1) for name, s in sorted(seen.items())
    )
    ready = sum(s.ready for name, s in seen.items() if name in record.required)
    failed = observed.phase is Phase.FAILED
    return structs.replace(
        observed,
        revisions=revisions,
        replicas=(ready, len(record.required)),
        hint=LOGS if failed else "",
        given_up=failed,
    )


def build_document(
    record: Record, seen: Mapping[str, Seen], now: str, *, before: Document | None = None, down: str = ""
) -> Document:
    """Return the InferenceService with its status.

    `before` is the previous document: what has not changed keeps its times. `down` is the reason if no
    supervisor is running.
    """
    metadata = record.service["metadata"]
    outer, inner = hosts(record.reference)
    last = before.get("status", {}) if before else {}
    since = {(c["type"], c["status"]): c["lastTransitionTime"] for c in last.get("conditions", [])}
    status = {
        "observedGeneration": record.generation,
        "url": f"http://{outer}",
        "address": {"url": f"http://{inner}"},
        "deploymentMode": "Knative",
        "servingRuntimeName": record.runtime["metadata"]["name"],
        "conditions": [
            {**condition, "lastTransitionTime": since.get((condition["type"], condition["status"]), now)}
            for condition in _conditions(record, seen, down)
        ],
        "components": {"predictor": _predictor(record, outer, serves=not down)},
        "modelStatus": _model_status(record, seen, now, last.get("modelStatus", {})),
    }
    metadata = {**metadata, "generation": record.generation, "creationTimestamp": record.created}
    return {**record.service, "metadata": metadata, "status": status}


def _predictor(record: Record, host: str, *, serves: bool) -> Document:
    names = {
        "latestCreatedRevision": record.latest,
        "latestReadyRevision": record.ready,
        "latestRolledoutRevision": record.rolled_out,
        "previousRolledoutRevision": record.previous,
    }
    traffic = [
        {
            "revisionName": line.revision,
            "percent": line.percent,
            "latestRevision": line.revision == record.ready,
        }
        for line in (record.traffic if serves else ())
    ]
    if len(traffic) == 2:  # KServe tags the revision that a canary is compared with
        traffic[1]["tag"] = "prev"
    return {
        **{key: name for key, name in names.items() if name},
        "traffic": traffic,
        "url": f"http://{host}",
    }


def _conditions(record: Record, seen: Mapping[str, Seen], down: str) -> list[Document]:
    ready, lost = {"status": "True"}, _missing(record.traffic, seen)
    failure = record.revision(record.latest).failure
    predictor = ingress = ready
    if down:
        predictor = ingress = _condition("False", NOT_RUNNING, down)
    elif failure:
        predictor = _condition("False", "RevisionFailed", failure)
    elif not record.arrived:
        predictor = _condition("Unknown", "RevisionNotReady", _missing(record.desired_traffic, seen))
    elif lost:
        predictor = _condition("False", "RevisionLost", lost)
    if not down and (lost or not record.traffic):
        ingress = _condition("False", "NoReadyRevision", lost)
    whole = predictor if predictor is not ready else ingress
    kinds = {"PredictorReady": predictor, "IngressReady": ingress, "Ready": whole}
    return [{"type": kind, **condition} for kind, condition in kinds.items()]


def _condition(status: str, reason: str, message: str) -> Document:
    return {"status": status, "reason": reason, "message": message}


def _missing(lines: tuple[Line, ...], seen: Mapping[str, Seen]) -> str:
    """Return which revision is not ready, and why."""
    for name in (line.revision for line in lines):
        if name not in seen or not seen[name].ready:
            return f"{name}: {seen[name].reason if name in seen else 'not running'}"
    return ""


def _model_status(record: Record, seen: Mapping[str, Seen], now: str, before: Document) -> Document:
    failure = record.revision(record.latest).failure
    serves = any(seen[line.revision].ready for line in record.traffic if line.revision in seen)
    up_to_date = record.arrived and not _missing(record.desired_traffic, seen)
    status: Document = {
        "transitionStatus": "UpToDate" if up_to_date else "InProgress",
        "states": {
            "activeModelState": "Loaded" if serves else "Pending",
            "targetModelState": "FailedToLoad" if failure else "Loaded" if up_to_date else "Loading",
        },
        "copies": {"failedCopies": int(bool(failure)), "totalCopies": sum(s.ready for s in seen.values())},
    }
    if failure:
        info = {"reason": "ModelLoadFailed", "message": failure, "modelRevisionName": record.latest}
        last = before.get("lastFailureInfo", {})
        same = {key: last.get(key) for key in info} == info
        status["transitionStatus"] = "BlockedByFailedLoad"
        status["lastFailureInfo"] = {**info, "time": last["time"] if same else now}
    return status
