"""Decides when a release counts as ready or failed. Pure: the caller passes the time.

Times are seconds of any clock that never goes backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import structs

from deployer.observed import NOT_SWITCHED, Document, Observed, Phase
from deployer.targets.kserve.state.children import Children
from deployer.targets.kserve.state.diagnosis import SCALES_UP, Failure, diagnose, lacks_gpu
from deployer.targets.kserve.state.progress import describe_progress
from deployer.targets.kserve.state.revisions import observe

LOGS = "Fix the cause, then run `kdeploy rollout` again. `kdeploy logs` shows the containers' output."
STEP = 30  # seconds after which an unchanged state is reported again


@dataclass(kw_only=True)
class ReadinessEvaluator:
    """Evaluates one service repeatedly, and remembers how long its state has lasted.

    `window` is how long Ready must last. `stable` is the release that gets the rest of the traffic.
    `spec_before`, `before` and `conditions_before` are as in diagnose. While a GPU is missing, `gpu_returns`
    finds out whether another pod is about to free one, and `may_scale_up` whether a node can be added.

    After an evaluation, `failure` is the failure that counts, and `recheck_at` the time at which the result
    can change although the cluster does not.
    """

    window: float
    stable: str | None = None
    spec_before: Document | None = None
    before: Mapping[str, Mapping[str, int]] | None = None
    conditions_before: Sequence[Document] = ()
    gpu_returns: Callable[[], bool] = lambda: False
    may_scale_up: Callable[[], bool] = lambda: False
    failure: Failure | None = field(default=None, init=False)
    recheck_at: float | None = field(default=None, init=False)
    _ready_since: float | None = field(default=None, init=False)
    _failing_since: float | None = field(default=None, init=False)
    _state: tuple[Phase, str] | None = field(default=None, init=False)
    _state_since: float = field(default=0.0, init=False)

    @property
    def in_window(self) -> bool:
        """Whether the service is Ready, and its window has not ended."""
        return self._ready_since is not None and self.recheck_at is not None

    def evaluate(self, service: Document, children: Children, now: float) -> Observed:
        """Return the status that counts now."""
        self.recheck_at = None
        status = self._evaluate(service, children, now)
        if (status.phase, status.reason) != self._state:
            self._state, self._state_since = (status.phase, status.reason), now
        seconds = int(now - self._state_since) // STEP * STEP
        if status.phase is Phase.PROGRESSING:
            self.recheck(self._state_since + seconds + STEP)
        return structs.replace(status, seconds=seconds)

    def _evaluate(self, service: Document, children: Children, now: float) -> Observed:
        status = observe(service, children, stable=self.stable)
        if status.phase is Phase.STOPPED:
            return status
        if status.phase is Phase.READY:
            self._failing_since = None
            return self._evaluate_ready(status, now)
        self._ready_since = None
        failure = diagnose(service, children, self.before, self.spec_before, self.conditions_before)
        if failure and self._counts(failure, now):
            self.failure = failure
            hint = failure.hint or (LOGS if failure.container else "")
            return structs.replace(
                status, phase=Phase.FAILED, reason=failure.reason, message=failure.message, hint=hint
            )
        if not failure:
            self._failing_since = None
        if status.phase is Phase.PENDING:
            return structs.replace(status, message="waiting for KServe to write a status")
        reason, message = describe_progress(service, children)
        if not reason or status.reason == NOT_SWITCHED:
            reason, message = status.reason, status.message
        return structs.replace(status, phase=Phase.PROGRESSING, reason=reason, message=message)

    def _evaluate_ready(self, status: Observed, now: float) -> Observed:
        if self._ready_since is None:
            self._ready_since = now
        end = self._ready_since + self.window
        if now >= end:
            return status
        self.recheck(end)
        message = f"ready; must stay ready for {self.window:g} s"
        return structs.replace(status, phase=Phase.PROGRESSING, reason="Ready", message=message)

    def _counts(self, failure: Failure, now: float) -> bool:
        """Return whether a failure has lasted long enough."""
        if self._failing_since is None:
            self._failing_since = now
        scales_up = lacks_gpu(failure) and self.may_scale_up()
        end = self._failing_since + (SCALES_UP if scales_up else failure.after)
        if now >= end and not (lacks_gpu(failure) and self.gpu_returns()):
            return True
        self.recheck(end if now < end else now + STEP / 10)
        return False

    def recheck(self, time: float) -> None:
        """Schedule another evaluation at `time`, or earlier."""
        self.recheck_at = time if self.recheck_at is None else min(self.recheck_at, time)
