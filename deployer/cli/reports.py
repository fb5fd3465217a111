"""What people and programs see of a service: its status, its history, and what a rollout would change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from deployer.cli import view
from deployer.cli.options import Output
from deployer.cli.printers import print_rows
from deployer.cli.terminal import show

if TYPE_CHECKING:
    from deployer.differences import Difference
    from deployer.ownership import Outside
    from deployer.target import Document, Entry

_COMMIT = 12  # characters of a commit that people are shown


def print_status(
    document: Document, entries: Sequence[Entry], outside: Sequence[Outside], output: Output
) -> None:
    """Print one service, how its last rollout ended, and what was changed of it outside of kdeploy."""
    from msgspec import to_builtins

    name = document["metadata"]["name"]
    data = {**document, "changedOutside": to_builtins(outside)}
    print_rows(output, ["what", "value"], list(_status_rows(document, entries, outside)), data, [name])


def _status_rows(
    document: Document, entries: Sequence[Entry], outside: Sequence[Outside]
) -> Iterator[tuple[str, object]]:
    from deployer.history import describe_author
    from deployer.target import read_status

    status = read_status(document)
    predictor = document["spec"]["predictor"]
    model = predictor.get("model", {})
    reason = view.words(status)
    yield "service", status.reference
    yield "phase", status.phase.value
    if reason:
        yield "reason", reason
    yield "release", status.release or "-"
    yield "revision", status.revision or "-"
    yield "traffic", view.shares(status) or "none"
    wanted = predictor.get("canaryTrafficPercent", 100)
    yield "wanted traffic", f"{wanted} % {status.release or '-'}"
    yield "replicas", _replicas(document)
    yield "runtime", model.get("runtime", "-")
    yield "image", model.get("image", "-")
    yield "url", status.url or "-"
    for condition in document.get("status", {}).get("conditions", []):
        why = f" ({condition['reason']})" if condition.get("reason") else ""
        yield f"condition {condition['type']}", f"{condition['status']}{why}"
    for last in entries[-1:]:
        yield "last rollout", f"{last.outcome}: {last.release} by {describe_author(last)} at {last.when}"
    for one in outside:
        by = f"by {one.manager} at {one.since}" if one.manager else "taken out"
        yield "changed outside", f"{one.field} {by}"


def _replicas(document: Document) -> str:
    predictor = document["spec"]["predictor"]
    bounds = f"{predictor.get('minReplicas', 1)} to {predictor.get('maxReplicas', '-')}"
    seen = document.get("status", {}).get("components", {}).get("predictor", {}).get("replicas")
    return f"{seen['ready']} of {seen['wanted']} ready; {bounds}" if seen else bounds


def print_history(entries: Sequence[Entry], output: Output) -> None:
    """Print what was rolled out, a line each."""
    rows = [
        (
            entry.number,
            entry.release or "-",
            f"{entry.percent} %",
            entry.when or "-",
            entry.who or "-",
            _short(entry.commit) or "-",
            entry.outcome,
        )
        for entry in entries
    ]
    columns = ["number", "release", "traffic", "when", "who", "commit", "outcome"]
    print_rows(output, columns, rows, list(entries), [entry.release for entry in entries])


def _short(commit: str) -> str:
    digest, dash, dirty = commit.partition("-")
    return digest[:_COMMIT] + dash + dirty


def print_differences(differences: Sequence[Difference], output: Output) -> None:
    """Print what would change: as a unified diff, or as a list of changes."""
    from msgspec import to_builtins

    if output is Output.TABLE:
        for one in differences:
            show("".join(_unified(one)).rstrip("\n"))
        return
    data = [{"kind": d.kind, "name": d.name, "changes": to_builtins(d.changes)} for d in differences]
    print_rows(output, [], [], data, [f"{d.kind}/{d.name}" for d in differences])


def _unified(one: Difference) -> Iterator[str]:
    import difflib

    from deployer.manifest import encode_yaml

    before = encode_yaml([one.before]).splitlines(keepends=True)[1:] if one.before else []
    after = encode_yaml([one.after]).splitlines(keepends=True)[1:]
    name = f"{one.kind}/{one.name}"
    yield from difflib.unified_diff(before, after, f"live/{name}", f"wanted/{name}")
