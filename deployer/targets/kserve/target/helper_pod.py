"""A pod that mounts a claim for one command: created when it is first needed, deleted when the command ends.

If the command is killed, its pod ends at its own deadline, and the next command deletes the remains.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from deployer.errors import KdeployError, RefusedError, RolloutFailedError, StoreError
from deployer.findings import refuse
from deployer.observed import Document
from deployer.shipped import shipped
from deployer.store.location import locate_claim
from deployer.store.volume_shell import BrokenError, ExitError
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.api_errors import ExistsError
from deployer.targets.kserve.client.pod_exec import run_in_pod
from deployer.targets.kserve.client.resources import CLAIM, EVENT, POD, Resource
from deployer.targets.kserve.client.watch import Watching
from deployer.targets.kserve.preflight.permissions import check_permissions, needed_for_store
from deployer.targets.kserve.state.children import has_ended, is_terminating
from deployer.targets.kserve.state.diagnosis import diagnose_pod
from deployer.targets.kserve.state.pods import explain_pod
from deployer.targets.kserve.target.session import Session

DEADLINE = 3600  # seconds after which such a pod ends; a command that takes longer gets another pod
_LABELS = {"app.kubernetes.io/managed-by": "kdeploy", "app.kubernetes.io/component": "model-store"}


class HelperPod:
    """A shell in a pod that mounts a claim. Implements deployer.store.volume_shell.Shell."""

    def __init__(self, session: Session, image: str, note: Callable[[str], None]) -> None:
        self._session, self._image, self._note = session, image, note
        self._claim = locate_claim(session.store.uri).name
        self._name = ""

    def run(self, script: str, *arguments: str, source: Iterable[bytes] = ()) -> Iterator[bytes]:
        """Run a script in the claim's folder; if the pod has ended, the next run creates another one.

        Raises ExitError, BrokenError, and StoreError or TargetError if the pod cannot be created.
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
            if not _is_running(api.get(POD, namespace, self._name)):
                self.close()
            raise BrokenError(error.what, where=error.where, hint=error.hint) from error

    def close(self) -> None:
        """Delete the pod, if there is one. An error becomes a note, because the pod also ends by itself."""
        name, self._name = self._name, ""
        if not name:
            return
        namespace = self._session.namespace
        try:
            self._session.api.delete(POD, namespace, name)
        except KdeployError as error:
            self._note(f"cannot delete pod {namespace}/{name}, which ends within the hour: {error}")

    def _start(self, api: Api, namespace: str) -> None:
        refuse([check_permissions(api, namespace, needed_for_store(self._session.store))])
        self._find_claim(api, namespace)
        self._name = f"kdeploy-store-{uuid.uuid4().hex[:10]}"
        try:
            pod = _make(api, POD, self._document(namespace))
        except RolloutFailedError as error:
            what = f"cannot create a pod that mounts the claim: {error.what}"
            raise StoreError(what, where=error.where, hint=error.hint) from error
        _sweep(api, namespace, pod)
        self._wait(api, namespace)

    def _find_claim(self, api: Api, namespace: str) -> None:
        name, store = self._claim, self._session.store
        if api.get(CLAIM, namespace, name):
            return
        if not store.create_claim:
            raise StoreError(
                f"PersistentVolumeClaim {name} not found in namespace {namespace}",
                where="store.uri",
                hint='Create the claim, or let kdeploy create it: create-claim = "10Gi" in [store].',
            )
        document = {
            "apiVersion": CLAIM.api_version,
            "kind": CLAIM.kind,
            "metadata": {"name": name, "namespace": namespace, "labels": _LABELS},
            "spec": {
                "accessModes": [store.claim_access_mode],
                "resources": {"requests": {"storage": store.create_claim}},
            },
        }
        _make(api, CLAIM, document)

    def _wait(self, api: Api, namespace: str) -> None:
        """Wait until the pod runs, and note why it does not run yet. Raises StoreError if it never will."""
        clock, noted = api.patience.clock, ""
        end = clock.now() + api.patience.start  # the node can have to pull its image
        chosen = {
            POD: {"fieldSelector": f"metadata.name={self._name}"},
            EVENT: {"fieldSelector": f"involvedObject.name={self._name}"},
        }
        with Watching(api, namespace, chosen) as watching:
            while clock.now() < end:
                watching.wait(end - clock.now())
                if not watching.complete:
                    continue
                found, events = next(iter(watching.of(POD)), None), watching.of(EVENT)
                if _is_running(found):
                    return
                reason = self._waiting_reason(namespace, found, events)
                if reason and reason != noted:
                    noted = reason
                    self._note(f"the pod that mounts claim {self._claim} is waiting: {reason}")
        reason, seconds = noted or "no reason given", f"{api.patience.start:g}"
        raise StoreError(
            f"the pod that mounts the claim did not start in {seconds} s: {reason}",
            where=f"pod {namespace}/{self._name}",
            hint=f"Look at the claim: `kubectl -n {namespace} describe pvc {self._claim}`.",
        )

    def _waiting_reason(self, namespace: str, found: Document | None, events: list[Document]) -> str:
        """Return why the pod does not run yet. Raises StoreError if it never will."""
        reason = explain_pod(found, events) if found else "it was deleted"
        if found is None or has_ended(found):
            what = f"ended before it ran: {reason or 'no reason given'}"
        elif (failure := diagnose_pod(found, events)) and not failure.after:
            what = f"cannot run: {failure.reason}: {failure.message}"
        else:
            return reason
        raise StoreError(
            f"the pod that mounts the claim {what}",
            where=f"pod {namespace}/{self._name}",
            hint="Set `store.helper-image` to another image that has a shell.",
        )

    def _document(self, namespace: str) -> Document:
        import yaml

        document: Document = yaml.safe_load((shipped("manifests") / "helper-pod.yaml").read_text("utf-8"))
        document["metadata"] |= {"name": self._name, "namespace": namespace}
        document["spec"]["containers"][0]["image"] = self._image
        context, user = document["spec"]["securityContext"], self._session.user
        if user:
            context |= dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), user)
        document["spec"]["volumes"][0]["persistentVolumeClaim"] = {"claimName": self._claim}
        return document


def _make(api: Api, resource: Resource, document: Document) -> Document:
    """Create an object, or return the existing one: an answer was lost, or another user created it."""
    try:
        return api.create(resource, document)
    except ExistsError:
        metadata = document["metadata"]
        found = api.get(resource, metadata["namespace"], metadata["name"])
        if found is None:
            raise
        return found


def _sweep(api: Api, namespace: str, own: Document) -> None:
    """Delete the pods of killed commands: those that ended, or are older than the deadline."""
    selector = ",".join(f"{key}={value}" for key, value in _LABELS.items())
    for pod in api.list(POD, namespace, {"labelSelector": selector})[0]:
        # The API server wrote both times, so this machine's clock does not matter.
        age = _created(own) - _created(pod)
        name = pod["metadata"]["name"]
        if name != own["metadata"]["name"] and (has_ended(pod) or age > DEADLINE):
            api.delete(POD, namespace, name)


def _created(pod: Document) -> float:
    return datetime.fromisoformat(pod["metadata"]["creationTimestamp"].replace("Z", "+00:00")).timestamp()


def _is_running(pod: Document | None) -> bool:
    if pod is None or is_terminating(pod) or has_ended(pod):
        return False
    states = pod.get("status", {}).get("containerStatuses", [])
    return any("running" in (one.get("state") or {}) for one in states)
