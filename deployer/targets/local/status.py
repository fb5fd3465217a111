"""What is observed of a service, and its InferenceService with a status as KServe writes it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, structs

from deployer.observed import NOT_RUNNING, Document, Observed, Phase, Revision, read_observed
from deployer.targets.local.revisions import Record, hosts

LOGS = "fix the cause, then run `kdeploy rollout` again; `kdeploy logs` shows what TorchServe wrote"


class Seen(Struct, frozen=True):
    """What is seen of a revision's TorchServe: ready, or the reason why not."""

    ready: bool
    reason: str = ""


def observe(
    record: Record, document: Document, seen: Mapping[str, Seen], *, stable: str | None = None
) -> Observed:
    """Return what is observed of a service; `document` is as `build_document` made it."""
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


class _Condition(Struct, frozen=True):
    status: str
    reason: str = ""
    message: str = ""


_TRUE = _Condition("True")


def build_document(
    record: Record, seen: Mapping[str, Seen], now: str, *, before: Document | None = None, down: str = ""
) -> Document:
    """Return the InferenceService with its status.

    `before` is the document as it was last, whose times stay for what has not changed; `down` says
    why nothing can be running at all.
    """
    metadata = {
        **record.service["metadata"],
        "generation": record.generation,
        "creationTimestamp": record.created,
    }
    status = _status(record, seen, now, before or {}, down)
    return {**record.service, "metadata": metadata, "status": status}


def _status(record: Record, seen: Mapping[str, Seen], now: str, before: Document, down: str) -> Document:
    outer, inner = hosts(record.reference)
    arrived = (record.traffic, record.ready) == (record.desired_traffic, record.latest)
    conditions = _conditions(record, seen, arrived=arrived, down=down)
    since = {c["type"]: c for c in before.get("status", {}).get("conditions", [])}
    return {
        "observedGeneration": record.generation,
        "url": f"http://{outer}",
        "address": {"url": f"http://{inner}"},
        "deploymentMode": "Knative",
        "servingRuntimeName": record.runtime["metadata"]["name"],
        "conditions": [_dated(kind, c, since.get(kind), now) for kind, c in conditions.items()],
        "components": {"predictor": _predictor(record, outer, serves=not down)},
        "modelStatus": _model_status(record, seen, now, before, arrived=arrived),
    }


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
    if len(traffic) == 2:  # as KServe tags the revision that a canary stands against
        traffic[1]["tag"] = "prev"
    return {
        **{key: name for key, name in names.items() if name},
        "traffic": traffic,
        "url": f"http://{host}",
    }


def _conditions(
    record: Record, seen: Mapping[str, Seen], *, arrived: bool, down: str
) -> dict[str, _Condition]:
    if down:
        gone = _Condition("False", NOT_RUNNING, down)
        return {"PredictorReady": gone, "IngressReady": gone, "Ready": gone}
    serving = [line.revision for line in record.traffic]
    lost = _missing(serving, seen)
    failure = record.revision(record.latest).failure
    if failure:
        predictor = _Condition("False", "RevisionFailed", failure)
    elif not arrived:
        waiting = _missing([line.revision for line in record.desired_traffic], seen)
        predictor = _Condition("Unknown", "RevisionNotReady", waiting)
    elif lost:
        predictor = _Condition("False", "RevisionLost", lost)
    else:
        predictor = _TRUE
    ingress = _TRUE if serving and not lost else _Condition("False", "NoReadyRevision", lost)
    ready = next((c for c in (predictor, ingress) if c.status != "True"), _TRUE)
    return {"PredictorReady": predictor, "IngressReady": ingress, "Ready": ready}


def _missing(revisions: list[str], seen: Mapping[str, Seen]) -> str:
    for name in revisions:
        if name not in seen or not seen[name].ready:
            return f"{name}: {seen[name].reason if name in seen else 'it is not running'}"
    return ""


def _model_status(
    record: Record, seen: Mapping[str, Seen], now: str, before: Document, *, arrived: bool
) -> Document:
    failure = record.revision(record.latest).failure
    ready = sum(s.ready for s in seen.values())
    serves = any(seen[line.revision].ready for line in record.traffic if line.revision in seen)
    up_to_date = arrived and not _missing([line.revision for line in record.desired_traffic], seen)
    states = {
        "activeModelState": "Loaded" if serves else "Pending",
        "targetModelState": "FailedToLoad" if failure else "Loaded" if up_to_date else "Loading",
    }
    status: Document = {
        "transitionStatus": "UpToDate" if up_to_date else "InProgress",
        "states": states,
        "copies": {"failedCopies": int(bool(failure)), "totalCopies": ready},
    }
    if failure:
        info = {"reason": "ModelLoadFailed", "message": failure, "modelRevisionName": record.latest}
        last = before.get("status", {}).get("modelStatus", {}).get("lastFailureInfo", {})
        same = {key: last.get(key) for key in info} == info
        status["transitionStatus"] = "BlockedByFailedLoad"
        status["lastFailureInfo"] = {**info, "time": last["time"] if same else now}
    return status


def _dated(kind: str, condition: _Condition, before: Document | None, now: str) -> Document:
    same = before is not None and before["status"] == condition.status
    dated = {"type": kind, "status": condition.status, "lastTransitionTime": now}
    if same and before:
        dated["lastTransitionTime"] = before["lastTransitionTime"]
    if condition.reason:
        dated.update(reason=condition.reason, message=condition.message)
    return dated
