"""When a rollout is believed to have ended, well or not. Pure but for the clock that it is given."""

from __future__ import annotations

import msgspec

from deployer.target import Document, Phase, Status, read_status
from deployer.targets.kserve.diagnosis import Failure, diagnose, explain_waiting
from deployer.targets.kserve.serving import Children, describe_serving, serves_release

# KServe leaves its verdict on the release before in the status until it has come round to this one.
DOUBT = 10.0  # seconds that such a verdict must last until it counts as the one on this release
UNSCHEDULED = 1.0  # seconds: that an autoscaler brings a node is told after the Pod's condition, if at all


class Judge:
    """Looks at one service again and again. Times are seconds of any clock that only goes forward."""

    def __init__(self, *, window: float, before: Document | None = None) -> None:
        """`window` is how long Ready must last; `before` the model status that another release left."""
        self.failure: Failure | None = None
        self.look_again: float | None = None
        self._window = window
        self._before = before
        self._ready_since: float | None = None
        self._doubt_since: float | None = None

    @property
    def in_window(self) -> bool:
        """Whether the service is Ready and only has to stay so."""
        return self._ready_since is not None and self.look_again is not None

    def look(self, service: Document, children: Children, now: float) -> Status:
        """Return the status as it is to be believed; `look_again` says when time alone may change it."""
        described = describe_serving(service, children)
        status = read_status(described)
        self.look_again = None
        if status.phase is Phase.READY and serves_release(described):
            self._doubt_since = None
            return self._believe_ready(status, now)
        self._ready_since = None
        failure = diagnose(described, children)
        self._doubt_since = self._doubt_since if failure else None
        if failure and self._believe(failure, service, now):
            self.failure = failure
            return msgspec.structs.replace(
                status, phase=Phase.FAILED, reason=failure.reason, message=failure.message
            )
        if status.phase is Phase.PENDING:
            return msgspec.structs.replace(status, message="KServe has not written a status yet")
        reason, message = explain_waiting(described, children)
        if status.phase is not Phase.PROGRESSING:  # Ready of another release, or a verdict in doubt
            status = msgspec.structs.replace(status, phase=Phase.PROGRESSING, reason="", message="")
        return msgspec.structs.replace(status, reason=reason, message=message) if reason else status

    def _believe_ready(self, status: Status, now: float) -> Status:
        if self._ready_since is None:
            self._ready_since = now
        end = self._ready_since + self._window
        if now >= end:
            return status
        self.look_again = end
        return msgspec.structs.replace(
            status, phase=Phase.PROGRESSING, reason="Ready", message=f"if it lasts for {self._window:g} s"
        )

    def _believe(self, failure: Failure, service: Document, now: float) -> bool:
        doubt = self._doubt(failure, service)
        if not doubt:
            self._doubt_since = None
            return True
        if self._doubt_since is None:
            self._doubt_since = now
        self.look_again = self._doubt_since + doubt
        return now >= self.look_again

    def _doubt(self, failure: Failure, service: Document) -> float:
        if failure.reason == "Unschedulable":
            return UNSCHEDULED
        same = _verdict(service.get("status", {}).get("modelStatus")) == _verdict(self._before)
        return DOUBT if self._before is not None and same and not failure.certain else 0.0


def _verdict(model_status: Document | None) -> tuple[object, object]:
    """Return what of a model status says why it failed; the counts beside it may change for any reason."""
    model_status = model_status or {}
    return model_status.get("transitionStatus"), model_status.get("lastFailureInfo")
