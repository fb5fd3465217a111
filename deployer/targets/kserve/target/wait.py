"""Waits for the release of one service: watches it, evaluates every change, and reads logs if necessary."""

from __future__ import annotations

import contextlib
from functools import cache

import msgspec

from deployer.errors import KdeployError, NotFoundError, RefusedError
from deployer.manifest import RUNTIME_PREFIX
from deployer.observed import Document, Observed, Phase, Reference, read_observed
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.resources import EVENT, POD
from deployer.targets.kserve.client.watch import Watching
from deployer.targets.kserve.preflight.facts import may_scale_up, returns_gpu
from deployer.targets.kserve.preflight.rules.admission import check_frozen
from deployer.targets.kserve.state.children import (
    SERVING_CONTAINER,
    Children,
    conditions,
    is_standard,
    release_pods,
)
from deployer.targets.kserve.state.diagnosis import applied_at
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE
from deployer.targets.kserve.state.pods import count_failures, find_container, is_ready
from deployer.targets.kserve.state.readiness import ReadinessEvaluator
from deployer.targets.kserve.target.apply import Applied
from deployer.targets.kserve.target.logs import LAST_LINES, TAIL_LINES, last_lines
from deployer.targets.kserve.target.read import gather, read_routes, selections
from deployer.targets.protocols import Watch

_LOG_PERIOD = 2.0  # seconds between two reads of the log of a container that loads a model


class Wait:
    """One wait for the release that an InferenceService names.

    If the release was just applied, only older pods can have failed before. This deletes pods that failed
    before: a new pod starts immediately, while the kubelet waits up to five minutes before it retries.
    """

    def __init__(
        self, api: Api, service: Document, window: float, applied: Applied | None, stable: str | None
    ) -> None:
        self._api, self._service, self._window, self._stable = api, service, window, stable
        self._fresh = applied.fresh if applied else False
        self._spec_before = applied.spec_before if applied else None
        self._clock = api.patience.clock
        self._readiness: ReadinessEvaluator | None = None
        self._logs: dict[str, tuple[str, ...]] = {}
        self._logs_read = 0.0

    def observe(self, timeout: float) -> Watch:
        """Yield the status now and at every change; end after `timeout` seconds, or once Ready has lasted.

        Raises TargetError, and NotFoundError if the service is deleted meanwhile.
        """
        metadata = self._service["metadata"]
        reference = Reference(metadata["namespace"], metadata["name"])
        end = self._clock.now() + timeout
        about = {"fieldSelector": f"involvedObject.uid={metadata['uid']}"}
        chosen = {**selections(reference, standard=is_standard(self._service)), EVENT: about}
        with Watching(self._api, reference.namespace, chosen, followed=_unready) as watching:
            while True:
                changed = watching.wait(self._until(end) - self._clock.now())
                now = self._clock.now()
                if watching.complete:
                    yield self._status(self._same(watching.of(INFERENCE_SERVICE)), watching, now)
                elif changed and watching.trouble:
                    yield _in_trouble(read_observed(self._service, {}), watching.trouble)
                in_window = self._readiness is not None and self._readiness.in_window
                if now >= end and not in_window:
                    if not watching.complete:
                        trouble = watching.trouble or watching.silence
                        yield _in_trouble(read_observed(self._service, {}), trouble)
                    return

    def _until(self, end: float) -> float:
        """Return when to evaluate again even if nothing changes."""
        readiness = self._readiness
        if readiness is None or readiness.recheck_at is None:
            return end
        return readiness.recheck_at if readiness.in_window else min(end, readiness.recheck_at)

    def _status(self, service: Document, watching: Watching, now: float) -> Observed:
        children = gather(watching.of)
        if self._readiness is None:
            self._readiness = self._begin(service, children)
        children = msgspec.structs.replace(
            children, routes=read_routes(self._api, service), logs=self._read_logs(service, children, now)
        )
        status = self._readiness.evaluate(service, children, now)
        if children.logs:
            self._readiness.recheck(now + _LOG_PERIOD)
        if status.phase is Phase.STOPPED:
            for found in check_frozen(service):  # another user stopped it after the release was applied
                message, hint = found.detail, found.remedy
                return msgspec.structs.replace(status, phase=Phase.FAILED, message=message, hint=hint)
        failure = self._readiness.failure
        if status.phase is Phase.FAILED and failure:
            log = failure.lines
            if not log and failure.container:
                pod = {"namespace": status.reference.namespace, "name": failure.pod}
                log = last_lines(self._api, pod, failure.container, LAST_LINES, previous=failure.previous)
            return msgspec.structs.replace(status, log=log)
        return _in_trouble(status, watching.trouble) if watching.trouble else status

    def _begin(self, service: Document, children: Children) -> ReadinessEvaluator:
        pods = release_pods(service, children)
        if self._fresh:
            pods = [pod for pod in pods if _created_at(pod) < applied_at(service)]
        made = [] if self._fresh else [*children.replica_sets, *children.deployments]
        before = {pod["metadata"]["uid"]: count_failures(pod) for pod in pods}
        for pod in pods:
            if not is_ready(pod) and any(count_failures(pod).values()):
                metadata = pod["metadata"]
                with contextlib.suppress(RefusedError):  # then the kubelet retries the old pod
                    self._api.delete(POD, metadata["namespace"], metadata["name"])
        return ReadinessEvaluator(
            window=self._window,
            stable=self._stable,
            spec_before=self._spec_before,
            before=before,
            conditions_before=[one for document in made for one in conditions(document)],
            gpu_returns=lambda: returns_gpu(self._api),
            may_scale_up=cache(lambda: may_scale_up(self._api)),
        )

    def _read_logs(self, service: Document, children: Children, now: float) -> dict[str, tuple[str, ...]]:
        """Read the last lines of containers that load a model, unless their runtime is kdeploy's own."""
        if _runtime(service).startswith(RUNTIME_PREFIX):
            return {}
        loading = [
            pod["metadata"]
            for pod in release_pods(service, children)
            if not is_ready(pod) and find_container(pod, SERVING_CONTAINER).running
        ]
        if not loading:
            return {}
        if now - self._logs_read >= _LOG_PERIOD:
            self._logs_read = now
            self._logs = {
                pod["name"]: last_lines(self._api, pod, SERVING_CONTAINER, TAIL_LINES) for pod in loading
            }
        return self._logs

    def _same(self, services: list[Document]) -> Document:
        """Return the service as it is now. Raises NotFoundError if it was deleted."""
        metadata = self._service["metadata"]
        found = services[0] if services else None
        if found and found["metadata"]["uid"] == metadata["uid"]:
            return found
        another = ", and another service of this name was created" if found else ""
        raise NotFoundError(
            f"service {metadata['name']} was deleted during its rollout{another}",
            where=f"namespace {metadata['namespace']} on {self._api.where}",
            hint="Run `kdeploy rollout` to create it again, or `kdeploy list` to see the services.",
        )


def _unready(watching: Watching) -> list[Document]:
    """Return the pods of the wanted release that are not ready yet, whose events are watched."""
    children = gather(watching.of)
    services = watching.of(INFERENCE_SERVICE)
    return [pod for one in services for pod in release_pods(one, children) if not is_ready(pod)]


def _created_at(document: Document) -> str:
    return str(document["metadata"].get("creationTimestamp", ""))[:19]


def _runtime(service: Document) -> str:
    named = service.get("spec", {}).get("predictor", {}).get("model", {}).get("runtime", "")
    return str(service.get("status", {}).get("servingRuntimeName") or named)


def _in_trouble(status: Observed, trouble: KdeployError) -> Observed:
    """Add an error to a status, which cannot be Ready while it is not observed."""
    if status.phase is Phase.FAILED:
        return status
    phase = Phase.PENDING if status.phase is Phase.PENDING else Phase.PROGRESSING
    return msgspec.structs.replace(status, phase=phase, reason="Unreachable", message=trouble.what)
