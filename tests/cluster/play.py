"""What KServe's controller, Knative and the kubelet would write, played by the tests."""

from __future__ import annotations

import itertools
from typing import Any

from deployer.access import Access
from deployer.config import Serving
from deployer.manifest import render, render_runtime, render_secret, runtime_name
from deployer.release import ArchiveRecord, Release, Traffic
from deployer.target import RELEASE_LABEL, Capabilities, Document, Reference
from deployer.targets.kserve.serving import SERVICE_LABEL
from tests.cluster.kube import Kube

A, B = "1.0-aaaaaaaaaaaa", "1.1-bbbbbbbbbbbb"
NOW = "2026-01-01T00:00:00Z"
RUNTIME = runtime_name(render_runtime())
_numbers = itertools.count(1)


def documents(
    namespace: str,
    release: str = A,
    *,
    name: str = "digits",
    mode: str = "Standard",
    percent: int = 100,
    access: Access | None = None,
    **serving: Any,
) -> list[Document]:
    """Render a release as kdeploy does, with its Secret where `access` has credentials."""
    made = Release(
        id=release,
        name=name,
        version=release.partition("-")[0],
        archive=ArchiveRecord(f"{name}.mar", "sha256:0", ()),
        serving=Serving(**serving),
        config_properties="",
    )
    secret = render_secret(access, service=name, namespace=namespace) if access else None
    rendered = render(
        made,
        storage_uri=f"s3://models/{name}/{release}/",
        namespace=namespace,
        capabilities=Capabilities(deployment_mode=mode, canary=mode == "Knative"),
        traffic=Traffic(percent),
        access=access,
    )
    return [secret, *rendered] if secret else rendered


class Play:
    """One service's cluster side."""

    def __init__(self, kube: Kube, namespace: str, name: str = "digits") -> None:
        self.kube, self.namespace, self.name = kube, namespace, name
        self.reference = Reference(namespace, name)
        self._core = f"/api/v1/namespaces/{namespace}"
        self._apps = f"/apis/apps/v1/namespaces/{namespace}"
        self._service = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices/{name}"
        self._knative = f"/apis/serving.knative.dev/v1/namespaces/{namespace}/revisions"

    def service(self) -> Document:
        return self.kube.get(self._service)

    def status(self, **status: Any) -> None:
        """Write the InferenceService's status, as KServe's controller does: whole."""
        document = self.service()
        self.kube.replace(f"{self._service}/status", {**document, "status": status})

    def ready(self, *, ready: bool = True, **more: Any) -> None:
        """Let KServe say Ready, in Standard mode."""
        state = "True" if ready else "False"
        conditions = [
            {"type": kind, "status": state, "lastTransitionTime": NOW}
            for kind in ("IngressReady", "PredictorReady", "Ready")
        ]
        self.status(
            **{
                "deploymentMode": "Standard",
                "url": f"http://{self.name}-{self.namespace}.example.com",
                "observedGeneration": 1,
                "conditions": conditions,
                "components": {"predictor": {"url": f"http://{self.name}-predictor.example.com"}},
                "modelStatus": {"transitionStatus": "UpToDate", "states": {"targetModelState": "Loaded"}},
                **more,
            }
        )

    def ready_knative(self, latest: str, traffic: list[Document] | None = None, *, created: str = "") -> None:
        """Let KServe say Ready, in Knative mode."""
        conditions = [
            {"type": kind, "status": "True", "lastTransitionTime": NOW}
            for kind in ("PredictorReady", "Ready")
        ]
        predictor = {
            "latestCreatedRevision": created or latest,
            "latestReadyRevision": latest,
            "latestRolledoutRevision": latest,
            "traffic": traffic or [{"revisionName": latest, "percent": 100, "latestRevision": True}],
        }
        self.status(
            deploymentMode="Serverless",
            url=f"http://{self.name}.{self.namespace}.example.com",
            conditions=conditions,
            components={"predictor": predictor},
        )

    def failed_to_load(self, transition: str = "BlockedByFailedLoad", **failure: str) -> None:
        self.status(
            conditions=[{"type": "Ready", "status": "False", "lastTransitionTime": NOW}],
            modelStatus={"transitionStatus": transition, "lastFailureInfo": failure},
        )

    def labels(self, release: str) -> dict[str, str]:
        return {SERVICE_LABEL: self.name, "component": "predictor", RELEASE_LABEL: release}

    def replica_set(
        self, release: str, *, available: int, replicas: int = 1, number: int | None = None
    ) -> Document:
        """Create a ReplicaSet of a release, or change the one that is there."""
        name = f"{self.name}-predictor-{release[-6:]}"
        labels = self.labels(release)
        path = f"{self._apps}/replicasets"
        if self.kube.request("GET", f"{path}/{name}")[0] == 404:
            self.kube.create(
                path,
                {
                    "metadata": {"name": name, "labels": labels},
                    "spec": {
                        "replicas": replicas,
                        "selector": {"matchLabels": labels},
                        "template": {"metadata": {"labels": labels}, "spec": _pod_spec()},
                    },
                },
            )
            number = 1 if number is None else number
        change: Document = {"spec": {"replicas": replicas}}
        if number is not None:
            change["metadata"] = {"annotations": {"deployment.kubernetes.io/revision": str(number)}}
        document = self.kube.merge(f"{path}/{name}", change)
        status = {"replicas": replicas, "availableReplicas": available, "readyReplicas": available}
        return self.kube.merge(f"{path}/{name}/status", {"status": status}) or document

    def revision(self, release: str, number: int = 1) -> Document:
        """Create a Knative Revision of a release."""
        name = f"{self.name}-predictor-{number:05}"
        document = {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Revision",
            "metadata": {"name": name, "labels": self.labels(release)},
            "spec": {},
        }
        return self.kube.create(self._knative, document)

    def pod(self, release: str, *, init: Any = None, main: Any = None, conditions: Any = ()) -> Document:
        """Create a Pod of a release; `init` and `main` are its containers' states, as kubelet has them."""
        name = f"{self.name}-predictor-{release[-6:]}-{next(_numbers)}"
        made = self.kube.create(
            f"{self._core}/pods",
            {"metadata": {"name": name, "labels": self.labels(release)}, "spec": _pod_spec()},
        )
        status: Document = {"phase": "Pending", "conditions": list(conditions)}
        if init:
            status["initContainerStatuses"] = [_container("storage-initializer", **init)]
        if main:
            status["containerStatuses"] = [_container("kserve-container", **main)]
        self.kube.merge(f"{self._core}/pods/{name}/status", {"status": status})
        return made

    def restart(self, pod: str) -> None:
        """Let a pod's container run once more."""
        path = f"{self._core}/pods/{pod}/status"
        status = self.kube.get(path)["status"]
        status["containerStatuses"][0]["restartCount"] += 1
        self.kube.merge(path, {"status": status})

    def deployment(self, release: str, conditions: list[Document]) -> Document:
        name, labels = f"{self.name}-predictor", self.labels(release)
        made = self.kube.create(
            f"{self._apps}/deployments",
            {
                "metadata": {"name": name, "labels": labels},
                "spec": {
                    "selector": {"matchLabels": {"app": name}},
                    "template": {"metadata": {"labels": {**labels, "app": name}}, "spec": _pod_spec()},
                },
            },
        )
        self.kube.merge(f"{self._apps}/deployments/{name}/status", {"status": {"conditions": conditions}})
        return made

    def event(self, about: Document, reason: str, message: str, kind: str = "", time: str = NOW) -> None:
        metadata = about["metadata"]
        self.kube.create(
            f"{self._core}/events",
            {
                "metadata": {"name": f"{metadata['name']}.{next(_numbers):x}"},
                "involvedObject": {
                    "kind": kind or about.get("kind", "Pod"),
                    "name": metadata["name"],
                    "namespace": self.namespace,
                    "uid": metadata["uid"],
                },
                "type": "Warning",
                "reason": reason,
                "message": message,
                "firstTimestamp": time,
                "lastTimestamp": time,
            },
        )


def _pod_spec() -> Document:
    image = {"image": "pytorch/torchserve-kfs:0.12.0"}
    return {
        "initContainers": [{"name": "storage-initializer", **image}],
        "containers": [{"name": "kserve-container", **image}],
    }


def _container(name: str, **state: Any) -> Document:
    last = state.pop("last", None)
    document = {"name": name, "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    return {**document, "lastState": {"terminated": last}} if last else document
