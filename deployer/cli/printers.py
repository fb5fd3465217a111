"""Prints data on stdout and messages on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from deployer.cli.terminal import StoppedError, cell, draw, is_quiet, show, tell, warn
from deployer.rollout import view

if TYPE_CHECKING:  # not loaded by `kdeploy --help`
    from rich.live import Live
    from rich.text import Text

    from deployer.cli.options import Output
    from deployer.events import Event
    from deployer.findings import Finding
    from deployer.observed import Document, Observed
    from deployer.targets.local.protocol import Info, RevisionInfo


_STYLES = {"Ready": "bold green", "Failed": "bold red"}


def open_viewer() -> Viewer:
    """Create the viewer of a rollout: a live view on a terminal, else one line for each change."""
    live = sys.stderr.isatty() and not is_quiet() and os.environ.get("TERM", "dumb") != "dumb"
    return LiveViewer() if live else Viewer()


class Viewer:
    """Prints events as lines on stderr, and on a terminal a progress bar for the model archive."""

    def __init__(self) -> None:
        self._size = self._written = 0
        self._done = "nothing was applied"

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        """Report how far the command got when Ctrl-C stops it. Raises StoppedError."""
        if isinstance(error, KeyboardInterrupt):
            raise StoppedError(self._done) from error

    def __call__(self, event: Event) -> None:
        """Print one event."""
        from deployer import events

        if isinstance(event, events.Progressed):
            self._bar(event.size)
            return
        if isinstance(event, events.Archiving):
            self._size, self._written = event.size, 0
        self._done = _so_far(event) or self._done
        if isinstance(event, events.Warned | events.Noted):
            warn(event.message, label="warning: " if isinstance(event, events.Warned) else "")
        elif sentence := _sentence(event):
            tell(sentence)

    def _bar(self, size: int) -> None:
        self._written += size
        if sys.stderr.isatty() and not is_quiet() and self._size:
            share = min(self._written / self._size, 1.0)
            end = "\n" if share == 1.0 else ""
            draw(f"\r  {'#' * int(40 * share):<40} {share:4.0%}{end}")


class LiveViewer(Viewer):
    """Shows the current state of a rollout on a terminal; one line remains at the end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._began = clock()
        self._view = view.View()
        self._live: Live | None = None

    def __call__(self, event: Event) -> None:
        """Show one event."""
        from deployer import events

        self._view = view.update(self._view, event)
        if isinstance(event, events.StatusChanged):
            self._show()
            return
        if isinstance(event, events.Applied):
            self._began = self._clock()
        super().__call__(event)

    def __exit__(self, kind: object, error: BaseException | None, *rest: object) -> None:
        if self._live:
            self._live.stop()
        if self._live and self._view.status:
            after = view.elapsed_text(self._clock() - self._began)
            tell(f"{view.status_text(self._view.status)}; after {after}")
        super().__exit__(kind, error, *rest)

    def _show(self) -> None:
        from rich.console import Console
        from rich.live import Live

        if self._live is None:
            console = Console(stderr=True, highlight=False)
            self._live = Live(
                get_renderable=self._render, console=console, transient=True, redirect_stdout=False
            )
            self._live.start()
        self._live.refresh()

    def _render(self) -> Text:
        from rich.text import Text

        first, *rest = map(cell, view.format_lines(self._view, self._clock() - self._began) or [""])
        phase = first.partition(" ")[0]
        return Text("\n").join([Text(first, _STYLES.get(phase, "bold yellow")), *map(Text, rest)])


def _sentence(event: Event) -> str:
    from deployer import events

    match event:
        case events.Archiving():
            return f"archiving {event.name}: {event.files} files, {size_text(event.size)}"
        case events.Pushed(bytes_written=0):
            return f"unchanged: release {event.release} is in the model store"
        case events.Pushed():
            return f"pushed release {event.release}: {size_text(event.bytes_written)} to {event.uri}"
        case events.Applied():
            return f"applied {event.service}: release {event.release}"
        case events.Unchanged():
            return f"unchanged: {event.service} is Ready with release {event.release}"
        case events.StatusChanged():
            return view.status_text(event.status)
        case _:
            return ""


def _so_far(event: Event) -> str | None:
    """Return what is done after an event, for the message of an interrupted command."""
    from deployer import events

    match event:
        case events.Pushed():
            return f"release {event.release} is in the model store; nothing was applied"
        case events.Applying():
            return f"release {event.release} might be partly applied to {event.service}"
        case events.Applied():
            return (
                f"release {event.release} is applied to {event.service} and serves when it is ready; "
                "`kdeploy status` shows its state"
            )
        case _:
            return None


def size_text(size: int) -> str:
    """Format a number of bytes."""
    if size < 1000:
        return f"{size} bytes"
    for factor, unit in ((1e3, "kB"), (1e6, "MB")):
        if size < 1000 * factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e9:.1f} GB"


def print_json(data: Any) -> None:
    """Print data as JSON on stdout."""
    import json

    import msgspec

    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    show(json.dumps(msgspec.to_builtins(data), indent=2, ensure_ascii=encoding != "utf8"))


def print_yaml(data: Any) -> None:
    """Print data as YAML."""
    import msgspec

    from deployer.manifest import encode_yaml

    values = msgspec.to_builtins(data)
    show(encode_yaml(values if isinstance(values, list) else [values]).rstrip("\n"))


def print_rows(
    output: Output, columns: Sequence[str], rows: Sequence[Sequence[object]], data: Any, names: Sequence[str]
) -> None:
    """Print data as a table, JSON, YAML or names."""
    if output == "json":
        print_json(data)
    elif output == "yaml":
        print_yaml(data)
    elif output == "name":
        for name in names:
            show(cell(name))
    else:
        print_table(columns, rows)


def print_documents(documents: Sequence[Document], output: Output) -> None:
    """Print Kubernetes documents, or their names."""
    rows = [(document["kind"], document["metadata"]["name"]) for document in documents]
    print_rows(output, ["kind", "name"], rows, list(documents), [f"{kind}/{name}" for kind, name in rows])


def time_text(seconds: float) -> str:
    """Format a time, in seconds since the epoch, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def iso_time(seconds: float) -> str:
    """Format a time, in seconds since the epoch, in UTC, as Kubernetes does."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], write: Callable[[str], None] = show
) -> None:
    """Print aligned columns. No value is truncated, so that every value can be copied."""
    lines = [[column.upper() for column in columns], *([cell(value) for value in row] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        write("   ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def value_text(value: object) -> str:
    """Format a value as in kdeploy.toml; None is a dash."""
    import json

    return "-" if value is None else json.dumps(value)


def print_services(statuses: list[Observed], output: Output) -> None:
    """Print the services of a target, one per line."""
    rows = [
        (
            s.reference.name,
            s.reference.namespace,
            s.phase.value,
            s.wanted or "-",
            view.traffic_text(s) or "none",
            s.url or "-",
        )
        for s in statuses
    ]
    columns = ["name", "namespace", "phase", "release", "traffic", "url"]
    print_rows(output, columns, rows, statuses, [s.reference.name for s in statuses])


def print_local(info: Info, output: Output) -> None:
    """Print the processes of the local target."""
    rows = [
        (
            f"{service.namespace}/{service.name}",
            r.name,
            r.release or "-",
            f"{r.percent}%",
            r.pid or "-",
            _state(r),
        )
        for service in info.services
        for r in service.revisions
    ]
    if output == "table":
        running = f"pid {info.pid}, ingress {info.ingress}" if info.pid else "not running"
        tell(f"supervisor: {running}; state: {info.state}")
    columns = ["service", "revision", "release", "traffic", "pid", "state"]
    print_rows(output, columns, rows, info, [revision for _, revision, *_ in rows])


def _state(revision: RevisionInfo) -> str:
    if revision.draining:
        return "draining"
    return "ready" if revision.ready else f"not ready: {revision.reason}"


def print_findings(findings: Sequence[Finding], output: Output) -> None:
    """Print the findings of `kdeploy doctor`. Raises DoctorError if one is a failure."""
    from deployer.errors import DoctorError

    rows = [(f.status, f.name, f"{f.detail} ({f.where})" if f.where else f.detail) for f in findings]
    print_rows(output, ["status", "check", "detail"], rows, findings, [f.name for f in findings])
    for finding in findings:
        if finding.remedy:
            tell(f"{finding.name}: {finding.remedy}")
    failed = [finding.name for finding in findings if finding.status == "failure"]
    if failed:
        raise DoctorError(
            f"failed checks: {', '.join(failed)}",
            hint="Fix the failures listed above, then run `kdeploy doctor`.",
        )
