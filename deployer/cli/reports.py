"""Prints the status and the history of a service, and the changes of a rollout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from deployer.cli.options import Output
from deployer.cli.printers import print_rows, print_yaml
from deployer.cli.terminal import show
from deployer.errors import RolloutFailedError
from deployer.rollout import view

if TYPE_CHECKING:
    from deployer.diff import Diff
    from deployer.journal import Entry
    from deployer.managed_fields import Drift
    from deployer.observed import Live, Observed

_COMMIT = 12  # printed characters of a commit
_BLOCKING = ("serving.kserve.io/stop", "serving.kserve.io/disable-auto-update")


def print_status(live: Live, entries: Sequence[Entry], outside: Sequence[Drift], output: Output) -> None:
    """Print a service, its last rollout, and its drift."""
    if output == "yaml":
        print_yaml(live.document)
        return
    from msgspec import to_builtins

    data = {**to_builtins(live.status), "drift": to_builtins(outside)}
    rows, name = list(_status_rows(live, entries, outside)), live.status.reference.name
    print_rows(output, ["field", "value"], rows, data, [name])


def failure_of(status: Observed) -> RolloutFailedError:
    """Return the error for a failed or stopped service."""
    from deployer.observed import NOT_RUNNING

    stopped = status.phase.value == "Stopped"
    hint = status.hint or "Run `kdeploy logs` to see why."
    if stopped:
        remove = "Remove the annotation serving.kserve.io/stop to start it."
        hint = "Run `kdeploy local start` to start its services." if status.reason == NOT_RUNNING else remove
    what = "the service is stopped" if stopped else f"release {status.wanted} has failed"
    return RolloutFailedError(f"{what}: {view.reason_text(status)}", where=str(status.reference), hint=hint)


def _status_rows(
    live: Live, entries: Sequence[Entry], outside: Sequence[Drift]
) -> Iterator[tuple[str, object]]:
    from deployer.journal import describe_author

    document, status = live.document, live.status
    predictor = document["spec"]["predictor"]
    model = predictor.get("model", {})
    yield "service", status.reference
    yield "phase", status.phase.value
    if reason := view.reason_text(status):
        yield "reason", reason
    if status.hint:
        yield "hint", status.hint
    yield "release", status.wanted or "-"
    yield "revision", status.revision or "-"
    yield "traffic", view.traffic_text(status) or "none"
    yield "wanted traffic", _wanted(status)
    yield "replicas", _replicas(live)
    if status.holding:
        yield "terminating", ", ".join(status.holding)
    yield "runtime", model.get("runtime", "-")
    yield "image", model.get("image", "-")
    yield "url", status.url or "-"
    for condition in document.get("status", {}).get("conditions", []):
        why = f" ({condition['reason']})" if condition.get("reason") else ""
        yield f"condition {condition['type']}", f"{condition['status']}{why}"
    for key in _BLOCKING:
        if str(document["metadata"].get("annotations", {}).get(key, "")).lower() == "true":
            yield f"annotation {key}", "true: rollouts have no effect until you remove it"
    for last in entries[-1:]:
        yield (
            "last rollout",
            f"{_outcome(last)}: {last.release} by {describe_author(last)} at {last.when}",
        )
    for drift in outside:
        by = f"changed by {drift.manager} at {drift.since}" if drift.manager else "removed"
        yield "drift", f"{drift.field} {by}"


def _wanted(status: Observed) -> str:
    rest = f", {100 - status.percent}% {status.stable}" if status.percent < 100 and status.stable else ""
    return f"{status.percent}% {status.wanted or '-'}{rest}"


def _replicas(live: Live) -> str:
    predictor = live.document["spec"]["predictor"]
    bounds = f"{predictor.get('minReplicas', 1)} to {predictor.get('maxReplicas', '-')}"
    ready, wanted = live.status.replicas
    return f"{ready} of {wanted} ready; {bounds}"


def _outcome(entry: Entry) -> str:
    """Format the outcome of a rollout, with the reason of a failure."""
    return f"{entry.outcome.value} ({entry.reason})" if entry.reason else entry.outcome.value


def print_history(entries: Sequence[Entry], output: Output) -> None:
    """Print the rollouts of a service, one per line."""
    rows = [
        (
            entry.number,
            entry.release or "-",
            f"{entry.percent}%",
            entry.when or "-",
            entry.who or "-",
            _short(entry.commit) or "-",
            _outcome(entry),
        )
        for entry in entries
    ]
    columns = ["number", "release", "traffic", "when", "who", "commit", "outcome"]
    print_rows(output, columns, rows, list(entries), [entry.release for entry in entries])


def _short(commit: str) -> str:
    digest, dash, dirty = commit.partition("-")
    return digest[:_COMMIT] + dash + dirty


def print_differences(differences: Sequence[Diff], output: Output) -> None:
    """Print changes as a unified diff, or as a list."""
    from msgspec import to_builtins

    if output == "table":
        for diff in differences:
            show("".join(_unified(diff)).rstrip("\n"))
        return
    data = [{"kind": d.kind, "name": d.name, "changes": to_builtins(d.changes)} for d in differences]
    print_rows(output, [], [], data, [f"{d.kind}/{d.name}" for d in differences])


def _unified(diff: Diff) -> Iterator[str]:
    import difflib

    from deployer.manifest import encode_yaml

    before = encode_yaml([diff.before]).splitlines(keepends=True)[1:] if diff.before else []
    after = encode_yaml([diff.after]).splitlines(keepends=True)[1:]
    name = f"{diff.kind}/{diff.name}"
    yield from difflib.unified_diff(before, after, f"live/{name}", f"wanted/{name}")
