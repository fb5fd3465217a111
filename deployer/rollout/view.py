"""Formats the progress of a rollout: events become a view, a view becomes lines of text. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # `kdeploy --help` imports this module and none of these
    from deployer.events import Event
    from deployer.observed import Observed


class View(NamedTuple):
    """The service that is being rolled out, and its last status."""

    service: str = ""
    status: Observed | None = None


def update(view: View, event: Event) -> View:
    """Return the view after an event."""
    from deployer.events import Applied, StatusChanged

    if isinstance(event, Applied):
        return View(event.service)
    return view._replace(status=event.status) if isinstance(event, StatusChanged) else view


def format_lines(view: View, seconds: float) -> list[str]:
    """Format a view: the release and its phase, the reason, and one line for each revision."""
    status = view.status
    if status is None:
        return []
    reason = reason_text(status)
    width = max((len(share.revision) for share in status.traffic), default=0)
    return [
        f"{status.phase.value}  {view.service}  release {status.wanted}  {elapsed_text(seconds)}",
        *([f"  {reason}"] if reason else []),
        *(
            f"  {share.revision:<{width}}  {share.percent:3}%  {share.release or 'unknown release'}"
            for share in status.traffic
        ),
    ]


def status_text(status: Observed) -> str:
    """Format a status as one line; the error that follows a failure gives its reason."""
    reason = "" if status.phase.value == "Failed" else reason_text(status)
    traffic = traffic_text(status)
    return (
        f"{status.phase.value}{f' ({reason})' if reason else ''}{f'; traffic: {traffic}' if traffic else ''}"
    )


def reason_text(status: Observed) -> str:
    """Return why a service is in its phase, and for how long it has made no progress."""
    waiting = status.seconds and status.phase.value == "Progressing" and status.message
    return f"{status.explanation} ({status.seconds} s)" if waiting else status.explanation


def traffic_text(status: Observed) -> str:
    """Format the traffic of each release."""
    return ", ".join(
        f"{share.percent}% {share.release or share.revision}" for share in status.traffic if share.percent
    )


def elapsed_text(seconds: float) -> str:
    """Format a duration: 9 s, 2 min 05 s."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
