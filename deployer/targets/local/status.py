"""The status of a service, in the shape that KServe gives an InferenceService's. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, structs

from deployer.target import NOT_RUNNING, RELEASE_LABEL, Document, Phase, Status, read_status
from deployer.targets.local.revisions import Record, hosts

LOGS = "fix the cause, then run `kdeploy rollout` again; `kdeploy logs` shows what TorchServe wrote"


def observe(document: Document, *, stable: str | None = None) -> Status:
    """Return what a document that `build_document` made tells; `stable` as in read_status."""
    predictor = document["status"]["components"]["predictor"]
    releases = {line["revisionName"]: line["release"] for line in predictor["traffic"]}
    releases[predictor["latestCreatedRevision"]] = document["metadata"].get("labels", {}).get(RELEASE_LABEL)
    releases[predictor.get("latestRolledoutRevision", "")] = predictor.get("rolledOutRelease")
    status = read_status(document, releases, stable=stable)
    counted = predictor["replicas"]
    failed = status.phase is Phase.FAILED
    replicas = (counted["ready"], counted["wanted"])
    return structs.replace(status, replicas=replicas, hint=LOGS if failed else "", given_up=failed)


class Seen(Struct, frozen=True):
    """What is seen of a revision's TorchServe: ready, or the reason why not."""

    ready: bool
    reason: str = ""


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
    arrived = (record.traffic, record.ready) == (record.goal, record.latest)
    conditions = _conditions(record, seen, arrived=arrived, down=down)
    since = {c["type"]: c for c in before.get("status", {}).get("conditions", [])}
    return {
        "observedGeneration": record.generation,
        "url": f"http://{outer}",
        "address": {"url": f"http://{inner}"},
        "deploymentMode": "Knative",
        "servingRuntimeName": record.runtime["metadata"]["name"],
        "conditions": [_dated(kind, c, since.get(kind), now) for kind, c in conditions.items()],
        "components": {"predictor": _predictor(record, seen, outer, serves=not down)},
        "modelStatus": _model_status(record, seen, now, before, arrived=arrived),
    }


def _predictor(record: Record, seen: Mapping[str, Seen], host: str, *, serves: bool) -> Document:
    releases = {revision.name: revision.release for revision in record.revisions}
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
            "release": releases[line.revision],
        }
        for line in (record.traffic if serves else ())
    ]
    if len(traffic) == 2:  # as KServe tags the revision that a canary stands against
        traffic[1]["tag"] = "prev"
    ready = sum(one.ready for name, one in seen.items() if name in record.needed)
    return {
        **{key: name for key, name in names.items() if name},
        "rolledOutRelease": releases.get(record.rolled_out),
        "traffic": traffic,
        "replicas": {"ready": ready, "wanted": len(record.needed)},
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
        waiting = _missing([line.revision for line in record.goal], seen)
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
    ready = sum(one.ready for one in seen.values())
    serves = any(seen[line.revision].ready for line in record.traffic if line.revision in seen)
    up_to_date = arrived and not _missing([line.revision for line in record.goal], seen)
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
