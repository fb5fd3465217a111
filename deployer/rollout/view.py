"""What a rollout looks like from here: events folded into a view, a view told in lines. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # `kdeploy --help` comes through here and needs none of these
    from deployer.events import Event
    from deployer.observed import Observed


class View(NamedTuple):
    """What is known of the service that is rolled out; nothing at first."""

    service: str = ""
    status: Observed | None = None


def see(view: View, event: Event) -> View:
    """Return the view after an event."""
    from deployer.events import Applied, StatusChanged

    if isinstance(event, Applied):
        return View(event.service)
    if isinstance(event, StatusChanged):
        return view._replace(status=event.status)
    return view


def lines(view: View, seconds: float) -> list[str]:
    """Tell a view in lines: the release and its phase, why it is in it, and a line for each revision."""
    status = view.status
    if status is None:
        return []
    told = [f"{status.phase.value}  {view.service}  release {status.wanted}  {elapsed_text(seconds)}"]
    if reason := words(status):
        told.append(f"  {reason}")
    width = max((len(share.revision) for share in status.traffic), default=0)
    told += (
        f"  {share.revision:<{width}}  {share.percent:3} %  {share.release or 'unknown release'}"
        for share in status.traffic
    )
    return told


def sentence(status: Observed) -> str:
    """Tell a status in one line."""
    # Why it failed is said once, by the error that comes next.
    reason = "" if status.phase.value == "Failed" else words(status)
    traffic = shares(status)
    return (
        f"{status.phase.value}{f' ({reason})' if reason else ''}{f'; traffic: {traffic}' if traffic else ''}"
    )


def words(status: Observed) -> str:
    """Say why a service is in its phase: what happens, or the reason of a failure with its message."""
    if status.phase.value == "Progressing" and status.message:
        return status.message + (f" ({status.seconds} s)" if status.seconds else "")
    return ": ".join(word for word in (status.reason, status.message) if word)


def shares(status: Observed) -> str:
    """Tell which releases get how much of the traffic."""
    return ", ".join(
        f"{share.percent} % {share.release or share.revision}" for share in status.traffic if share.percent
    )


def elapsed_text(seconds: float) -> str:
    """Write a duration as people read it: 9 s, 2 min 05 s."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
