"""When a release counts as ready or failed. Pure but for the times that it is given.

Times are seconds of any clock that only goes forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from deployer.observed import NOT_SWITCHED, Document, Observed, Phase
from deployer.targets.kserve.state.children import Children
from deployer.targets.kserve.state.diagnosis import SCALES_UP, Failure, diagnose, lacks_gpu
from deployer.targets.kserve.state.progress import describe_progress
from deployer.targets.kserve.state.revisions import observe

LOGS = "fix the cause, then run `kdeploy rollout` again; `kdeploy logs` shows what the containers wrote"
STEP = 30  # seconds after which a state that lasts is reported again


class ReadinessEvaluator:
    """Evaluates one service again and again, remembering since when it has been as it is.

    `window` is how long Ready must last, `stable` the release that is to get the rest of the requests.
    `spec_before`, `before` and `conditions_before` are as in diagnose. While a GPU is missing, `gpu_returns`
    finds out whether a pod elsewhere is about to give one back, `may_scale_up` whether a node may be added.
    """

    def __init__(
        self,
        *,
        window: float,
        stable: str | None = None,
        spec_before: Document | None = None,
        before: Mapping[str, Mapping[str, int]] | None = None,
        conditions_before: Sequence[Document] = (),
        gpu_returns: Callable[[], bool] = lambda: False,
        may_scale_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self.failure: Failure | None = None
        self.recheck_at: float | None = None
        self._window = window
        self._stable = stable
        self._spec_before = spec_before
        self._before = before
        self._conditions_before = conditions_before
        self._gpu_returns = gpu_returns
        self._may_scale_up = may_scale_up
        self._ready_since: float | None = None
        self._failing_since: float | None = None
        self._state: tuple[Phase, str] | None = None
        self._state_since = 0.0

    @property
    def in_window(self) -> bool:
        """Whether the service is Ready and only has to stay so."""
        return self._ready_since is not None and self.recheck_at is not None

    def evaluate(self, service: Document, children: Children, now: float) -> Observed:
        """Return the status as it counts; `recheck_at` says when time alone may change it."""
        self.recheck_at = None
        status = self._evaluate(service, children, now)
        if (status.phase, status.reason) != self._state:
            self._state, self._state_since = (status.phase, status.reason), now
        seconds = int(now - self._state_since) // STEP * STEP
        if status.phase is Phase.PROGRESSING:
            self.recheck(self._state_since + seconds + STEP)
        return msgspec.structs.replace(status, seconds=seconds)

    def _evaluate(self, service: Document, children: Children, now: float) -> Observed:
        status = observe(service, children, stable=self._stable)
        if status.phase is Phase.STOPPED:
            return status
        if status.phase is Phase.READY:
            self._failing_since = None
            return self._last(status, now)
        self._ready_since = None
        failure = diagnose(service, children, self._before, self._spec_before, self._conditions_before)
        if failure and self._counts(failure, now):
            self.failure = failure
            hint = failure.hint or (LOGS if failure.container else "")
            return msgspec.structs.replace(
                status, phase=Phase.FAILED, reason=failure.reason, message=failure.message, hint=hint
            )
        if not failure:
            self._failing_since = None
        if status.phase is Phase.PENDING:
            return msgspec.structs.replace(status, message="waiting for KServe to write a status")
        reason, message = describe_progress(service, children)
        if not reason or status.reason == NOT_SWITCHED:
            reason, message = status.reason, status.message
        return msgspec.structs.replace(status, phase=Phase.PROGRESSING, reason=reason, message=message)

    def _last(self, status: Observed, now: float) -> Observed:
        """Return Ready once it has lasted."""
        if self._ready_since is None:
            self._ready_since = now
        end = self._ready_since + self._window
        if now >= end:
            return status
        self.recheck(end)
        return msgspec.structs.replace(
            status,
            phase=Phase.PROGRESSING,
            reason="Ready",
            message=f"ready; must stay so for {self._window:g} s",
        )

    def _counts(self, failure: Failure, now: float) -> bool:
        if self._failing_since is None:
            self._failing_since = now
        scales_up = lacks_gpu(failure) and self._may_scale_up()
        end = self._failing_since + (SCALES_UP if scales_up else failure.after)
        if now >= end and not (lacks_gpu(failure) and self._gpu_returns()):
            return True
        self.recheck(end if now < end else now + STEP / 10)
        return False

    def recheck(self, time: float) -> None:
        """Look again at a time, if not before."""
        self.recheck_at = time if self.recheck_at is None else min(self.recheck_at, time)
