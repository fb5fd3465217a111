"""The Pod that mounts a claim for one command: made when it is first needed, deleted when the command ends.

Where a command is killed, its Pod ends by its own deadline, and the next command deletes what is left of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from deployer.errors import ConflictError, KdeployError, RefusedError, RolloutFailedError, StoreError
from deployer.findings import refuse
from deployer.observed import Document, Reference
from deployer.shipped import shipped
from deployer.store.location import locate_claim
from deployer.store.volume_shell import BrokenError, ExitError
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.pod_exec import run_in_pod
from deployer.targets.kserve.client.resources import CLAIM, EVENT, POD, Resource
from deployer.targets.kserve.client.watch import Watching
from deployer.targets.kserve.preflight.permissions import check_permissions, needed_for_store
from deployer.targets.kserve.state.children import is_over
from deployer.targets.kserve.state.diagnosis import diagnose_pod
from deployer.targets.kserve.state.pods import explain_pod
from deployer.targets.kserve.target.session import Session

DEADLINE = 3600  # seconds that such a Pod lives at most; a command that takes longer gets another one
_LABELS = {"app.kubernetes.io/managed-by": "kdeploy", "app.kubernetes.io/component": "model-store"}


class HelperPod:
    """A shell in a Pod that mounts a claim. Implements deployer.store.volume_shell.Shell."""

    def __init__(self, session: Session, image: str, note: Callable[[str], None]) -> None:
        self._session = session
        self._claim = locate_claim(session.store.uri).name
        self._image = image
        self._note = note
        self._name = ""

    def run(self, script: str, *arguments: str, source: Iterable[bytes] = ()) -> Iterator[bytes]:
        """Run a script in the claim's folder; where the Pod has ended, the next run gets another one.

        Raises ExitError, BrokenError, and StoreError or TargetError where there can be no such Pod.
        """
        api, namespace = self._session.api, self._session.namespace
        if not self._name:
            self._start(api, namespace)
        command = ["sh", "-c", script, "sh", *arguments]
        try:
            yield from run_in_pod(api.connection, namespace, self._name, command, source)
        except (ExitError, RefusedError):
            raise
        except KdeployError as error:
            if not _runs(api.get(POD, namespace, self._name)):
                self.close()
            raise BrokenError(error.what, where=error.where, hint=error.hint) from error

    def close(self) -> None:
        """Delete the Pod, if there is one. Never raises an error of ours: it also ends by itself."""
        name, self._name = self._name, ""
        if not name:
            return
        namespace = self._session.namespace
        try:
            self._session.api.delete(POD, namespace, name)
        except KdeployError as error:
            self._note(f"Pod {namespace}/{name} could not be deleted, and ends within the hour: {error}")

    def _start(self, api: Api, namespace: str) -> None:
        refuse([check_permissions(api, namespace, needed_for_store(self._session.store))])
        self._find_claim(api, namespace)
        self._name = f"kdeploy-store-{uuid.uuid4().hex[:10]}"
        try:
            pod = _make(api, POD, _document(self._claim, self._image, namespace, self._name))
        except RolloutFailedError as error:
            raise StoreError(
                f"no Pod can be made that mounts the claim: {error.what}", where=error.where, hint=error.hint
            ) from error
        _sweep(api, namespace, pod)
        self._wait(api, Reference(namespace, self._name))

    def _find_claim(self, api: Api, namespace: str) -> None:
        name, store = self._claim, self._session.store
        if api.get(CLAIM, namespace, name):
            return
        if not store.create_claim:
            raise StoreError(
                f"there is no PersistentVolumeClaim {name} in namespace {namespace}",
                where="store.uri",
                hint='make it, or set create-claim = "10Gi" in [store] to have it made',
            )
        _make(
            api,
            CLAIM,
            {
                "apiVersion": CLAIM.api_version,
                "kind": CLAIM.kind,
                "metadata": {"name": name, "namespace": namespace, "labels": _LABELS},
                "spec": {
                    "accessModes": [store.claim_access_mode],
                    "resources": {"requests": {"storage": store.create_claim}},
                },
            },
        )

    def _wait(self, api: Api, pod: Reference) -> None:
        """Wait until the Pod runs; say what it waits for. Raises StoreError where it never will."""
        clock, told = api.patience.clock, ""
        end = clock.now() + api.patience.start  # its image may have to be pulled
        chosen = {
            POD: {"fieldSelector": f"metadata.name={pod.name}"},
            EVENT: {"fieldSelector": f"involvedObject.name={pod.name}"},
        }
        with Watching(api, pod.namespace, chosen) as watching:
            while clock.now() < end:
                watching.wait(end - clock.now())
                if not watching.complete:
                    continue
                found, events = next(iter(watching.of(POD)), None), watching.of(EVENT)
                if _runs(found):
                    return
                said = _still_waiting(pod, found, events)
                if said and said != told:
                    told = said
                    self._note(f"the Pod that mounts claim {self._claim} waits: {said}")
        raise StoreError(
            f"after {api.patience.start:g} s no Pod that mounts the claim runs: {told or 'no reason given'}",
            where=f"pod {pod}",
            hint=f"look at the claim: `kubectl -n {pod.namespace} describe pvc {self._claim}`",
        )


def _make(api: Api, resource: Resource, document: Document) -> Document:
    """Create an object; one of its name, by an attempt whose answer was lost or by others, is as good."""
    try:
        return api.create(resource, document)
    except ConflictError:
        metadata = document["metadata"]
        found = api.get(resource, metadata["namespace"], metadata["name"])
        if found is None:
            raise
        return found


def _still_waiting(pod: Reference, found: Document | None, events: list[Document]) -> str:
    """Return what a Pod that does not run yet waits for. Raises StoreError where it never will."""
    said = explain_pod(found, events) if found else "it was deleted"
    if found is None or is_over(found):
        what = f"ended before it ran: {said or 'no reason given'}"
    elif (failure := diagnose_pod(found, events)) and not failure.after:
        what = f"cannot run: {failure.reason}: {failure.message}"
    else:
        return said
    raise StoreError(
        f"the Pod that mounts the claim {what}",
        where=f"pod {pod}",
        hint="store.helper-image names another image with a shell",
    )


def _sweep(api: Api, namespace: str, own: Document) -> None:
    """Delete the Pods of commands that were killed: those that ended, or are older than any may be."""
    selector = ",".join(f"{key}={value}" for key, value in _LABELS.items())
    for pod in api.list(POD, namespace, {"labelSelector": selector})[0]:
        # Both times are the API server's, whatever the clock here says.
        age = _created(own) - _created(pod)
        name = pod["metadata"]["name"]
        if name != own["metadata"]["name"] and (is_over(pod) or age > DEADLINE):
            api.delete(POD, namespace, name)


def _created(pod: Document) -> float:
    return datetime.fromisoformat(pod["metadata"]["creationTimestamp"].replace("Z", "+00:00")).timestamp()


def _runs(pod: Document | None) -> bool:
    if pod is None or "deletionTimestamp" in pod["metadata"]:
        return False
    states = pod.get("status", {}).get("containerStatuses", [])
    return not is_over(pod) and any("running" in (one.get("state") or {}) for one in states)


def _document(claim: str, image: str, namespace: str, name: str) -> Document:
    import yaml

    document: Document = yaml.safe_load((shipped("manifests") / "helper-pod.yaml").read_text("utf-8"))
    document["metadata"] |= {"name": name, "namespace": namespace}
    document["spec"]["containers"][0]["image"] = image
    document["spec"]["volumes"][0]["persistentVolumeClaim"] = {"claimName": claim}
    return document
