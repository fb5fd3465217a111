"""Writes what KServe's controller, Knative and the kubelet would write, from recorded states.

Every object comes from a real KServe (tests/snapshots/recorded), with the names, releases and counts of the
test. Comments mark invented content.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Sequence
from typing import Any

from deployer.bundle import Bundle
from deployer.config import Scaling, Serving
from deployer.manifest import render, render_runtime, runtime_name
from deployer.observed import RELEASE_LABEL, Capabilities, Document, Reference
from deployer.overlay import OVERLAY_LABEL
from deployer.release import ArchiveRecord, Release, Traffic
from deployer.storage_access import StorageAccess
from deployer.targets.kserve.state.children import SERVICE_LABEL
from tests.cluster.kube import Kube
from tests.recorded import TIME
from tests.recorded import documents as recorded

A, B = "1.0-aaaaaaaaaaaa", "1.1-bbbbbbbbbbbb"
NOW = TIME
RUNTIME = runtime_name(render_runtime())
_numbers = itertools.count(1)


REPLICAS = ("min_replicas", "max_replicas", "metric", "target", "query", "prometheus")


def documents(
    namespace: str,
    release: str = A,
    *,
    name: str = "digits",
    mode: str = "Standard",
    percent: int = 100,
    access: StorageAccess | None = None,
    overlays: Sequence[Document] = (),
    **serving: Any,
) -> Bundle:
    """Render a release as kdeploy does, with a Secret if `access` has credentials."""
    replicas = {key: serving.pop(key) for key in REPLICAS if key in serving}
    made = Release(
        id=release,
        name=name,
        version=release.partition("-")[0],
        archive=ArchiveRecord(f"{name}.mar", "sha256:0", ()),
        serving=Serving(**serving),
        config_properties="",
    )
    return render(
        made,
        storage_uri=f"s3://models/{name}/{release}/",
        namespace=namespace,
        capabilities=Capabilities(deployment_mode=mode, canary=mode == "Knative"),
        scaling=Scaling(**replicas),
        traffic=Traffic(percent),
        access=access,
        overlays=overlays,
    )


class Play:
    """The controllers and the kubelet of one service."""

    def __init__(self, kube: Kube, namespace: str, name: str = "digits") -> None:
        self.kube, self.namespace, self.name = kube, namespace, name
        self.reference = Reference(namespace, name)
        self.overlay = ""  # the service's label of that name, which KServe copies
        self._core = f"/api/v1/namespaces/{namespace}"
        self._apps = f"/apis/apps/v1/namespaces/{namespace}"
        self._service = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices/{name}"
        self._knative = f"/apis/serving.knative.dev/v1/namespaces/{namespace}/revisions"
        self._routes = f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes"

    def service(self) -> Document:
        return self.kube.get(self._service)

    def status(self, **status: Any) -> None:
        """Replace the InferenceService's status, as KServe's controller does."""
        document = self.service()
        if "servingRuntimeName" in status:
            status["servingRuntimeName"] = document["spec"]["predictor"]["model"]["runtime"]
        self.kube.replace(f"{self._service}/status", {**document, "status": status})

    def show(self, state: str, **more: Any) -> None:
        """Write the status of a recorded state; `more` replaces parts of it."""
        (service,) = self._recorded(state, "InferenceService")
        self.status(**{**service["status"], **more})

    def pending(self) -> None:
        """Write KServe's first status: no pod is ready."""
        self.show("02")

    def ready(self, *, ready: bool = True, **more: Any) -> None:
        """Write the status Ready, or that the predictor is not ready, in Standard mode."""
        self.show("04" if ready else "02", **more)

    def updating(self) -> None:
        """Write KServe's status during an update: Ready, because the old pods are ready."""
        self.show("05")

    def ready_knative(self, latest: str, traffic: list[Document] | None = None, *, created: str = "") -> None:
        """Write the status Ready, in Knative mode."""
        (service,) = self._recorded("26", "InferenceService")
        status = service["status"]
        status["components"]["predictor"] |= {
            "latestCreatedRevision": created or latest,
            "latestReadyRevision": latest,
            "latestRolledoutRevision": traffic[-1]["revisionName"] if traffic else latest,
            "traffic": traffic or [{"revisionName": latest, "percent": 100, "latestRevision": True}],
        }
        self.status(**status)

    def invalid(self, **failure: str) -> None:
        """Write the status for an invalid specification."""
        (service,) = self._recorded("33", "InferenceService")
        model = service["status"]["modelStatus"]
        self.status(**{**service["status"], "modelStatus": {**model, "lastFailureInfo": failure}})

    def labels(self, release: str) -> dict[str, str]:
        return {
            SERVICE_LABEL: self.name,
            "component": "predictor",
            RELEASE_LABEL: release,
            "app": f"isvc.{self.name}-predictor",
            **({OVERLAY_LABEL: self.overlay} if self.overlay else {}),
        }

    def deployment(self, release: str, conditions: list[Document] | None = None, **status: Any) -> Document:
        """Create the predictor's Deployment, or change its release label and conditions."""
        (document,) = self._recorded("04", "Deployment")
        name, path = document["metadata"]["name"], f"{self._apps}/deployments"
        document["metadata"] |= {"labels": self.labels(release), "ownerReferences": self._owners()}
        document["spec"]["template"]["metadata"]["labels"] |= {RELEASE_LABEL: release}
        if self.kube.request("GET", f"{path}/{name}")[0] == 404:
            self.kube.create(path, document)
        else:
            change = {
                "metadata": {"labels": self.labels(release)},
                "spec": {"template": document["spec"]["template"]},
            }
            self.kube.merge(f"{path}/{name}", change)
        if conditions is not None:
            written = {**document["status"], "conditions": conditions, **status}
            self.kube.merge(f"{path}/{name}/status", {"status": written})
        made: Document = self.kube.get(f"{path}/{name}")
        return made

    def replica_set(
        self,
        release: str,
        *,
        available: int,
        replicas: int = 1,
        number: int | None = None,
        conditions: list[Document] | None = None,
    ) -> Document:
        """Create or change the ReplicaSet of a release."""
        document = self._recorded("04", "ReplicaSet")[0]
        template = release[-6:] + self.overlay[:4]
        name, path = f"{self.name}-predictor-{template}", f"{self._apps}/replicasets"
        if self.kube.request("GET", f"{path}/{name}")[0] == 404:
            self._relabel(document, release, template)
            document["metadata"]["name"] = name
            document["spec"]["replicas"] = replicas
            self.kube.create(path, document)
            number = 1 if number is None else number
        change: Document = {"spec": {"replicas": replicas}}
        if number is not None:
            change["metadata"] = {"annotations": {"deployment.kubernetes.io/revision": str(number)}}
        changed = self.kube.merge(f"{path}/{name}", change)
        status: Document = {
            "observedGeneration": changed["metadata"]["generation"],
            "replicas": replicas,
            "availableReplicas": available,
            "readyReplicas": available,
        }
        if conditions is not None:
            status["conditions"] = conditions
        made: Document = self.kube.merge(f"{path}/{name}/status", {"status": status})
        return made

    def revision(self, release: str, number: int = 1) -> Document:
        """Create a Knative Revision of a release."""
        name = f"{self.name}-predictor-{number:05}"
        labels = {key: value for key, value in self.labels(release).items() if key != "app"}
        document = {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Revision",
            "metadata": {"name": name, "labels": labels},
            "spec": {},
        }
        made: Document = self.kube.create(self._knative, document)
        return made

    def pod(
        self,
        release: str,
        *,
        init: Any = None,
        main: Any = None,
        conditions: Any = (),
        ready: bool = False,
        limits: dict[str, str] | None = None,
        node: str = "some-node",
    ) -> Document:
        """Create a pod of a release; `init` and `main` are the states of its containers.

        Without both, the pod waits for a node.
        """
        document = self._recorded("02", "Pod")[0]
        self._relabel(document, release, release[-6:])
        document["metadata"]["name"] = f"{self.name}-predictor-{release[-6:]}-{next(_numbers)}"
        if limits:
            document["spec"]["containers"][0]["resources"] = {"limits": limits, "requests": limits}
        made: Document = self.kube.create(f"{self._core}/pods", _bare(document))
        status: Document = {"phase": "Pending", "conditions": list(conditions)}
        if init or main:
            self.bind(made, node)
        if ready:
            status["conditions"].append({"type": "Ready", "status": "True"})
        if init:
            status["initContainerStatuses"] = [_container("storage-initializer", **init)]
        if main:
            status["containerStatuses"] = [_container("kserve-container", **main)]
        path = f"{self._core}/pods/{made['metadata']['name']}"
        self.kube.merge(f"{path}/status", {"status": status})
        return made

    def change_pod(self, pod: Document, *, init: Any = None, main: Any = None, ready: bool = False) -> None:
        """Write another status of a pod's containers."""
        status: Document = {"conditions": [{"type": "Ready", "status": str(ready)}]}
        if init:
            status["initContainerStatuses"] = [_container("storage-initializer", **init)]
        if main:
            status["containerStatuses"] = [_container("kserve-container", **main)]
        self.kube.merge(f"{self._core}/pods/{pod['metadata']['name']}/status", {"status": status})

    def terminate(self, pod: Document) -> None:
        """Delete a pod that is on a node: without a kubelet, it stays in Terminating."""
        self.kube.request("DELETE", f"{self._core}/pods/{pod['metadata']['name']}")

    def gone(self, pod: Document) -> None:
        """Remove a terminating pod, as its kubelet does."""
        self.kube.request("DELETE", f"{self._core}/pods/{pod['metadata']['name']}?gracePeriodSeconds=0")

    def pods(self) -> list[str]:
        """Return the names of the pods."""
        return [one["metadata"]["name"] for one in self.kube.get(f"{self._core}/pods")["items"]]

    def restart(self, pod: str) -> None:
        """Run a pod's container again."""
        path = f"{self._core}/pods/{pod}/status"
        status = self.kube.get(path)["status"]
        status["containerStatuses"][0]["restartCount"] += 1
        self.kube.merge(path, {"status": status})

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

    def add_canary(self, percent: int, *weights: tuple[str, int]) -> None:
        """Add another user's canary to the service; its objects have the service's release label."""
        release = self.service()["metadata"]["labels"][RELEASE_LABEL]
        canary = {"name": "canary", "trafficPercent": percent, "predictor": {}}
        self.kube.merge(self._service, {"spec": {"canary": [canary]}})
        found = self._recorded("09", "ReplicaSet")[0]
        self._relabel(found, release, "c")
        found["metadata"] |= {"name": f"{self.name}-canary-predictor-c"}
        for labels in (
            found["metadata"]["labels"],
            found["spec"]["selector"]["matchLabels"],
            found["spec"]["template"]["metadata"]["labels"],
        ):
            labels["app"] = f"isvc.{self.name}-canary-predictor"
        self.kube.create(f"{self._apps}/replicasets", found)
        path = f"{self._apps}/replicasets/{found['metadata']['name']}/status"
        self.kube.merge(path, {"status": {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1}})
        route = next(one for one in self._recorded("29", "HTTPRoute") if one["metadata"]["name"] == self.name)
        for backend in route["spec"]["rules"][0]["backendRefs"]:
            backend |= {"namespace": self.namespace, "weight": dict(weights)[backend["name"]]}
        route["metadata"]["ownerReferences"] = self._owners()
        self.kube.create(self._routes, route)

    def _recorded(self, state: str, kind: str) -> list[Document]:
        """Return the objects of a kind in a recorded state, renamed to this service and namespace."""
        found = [copy.deepcopy(one) for one in recorded(state) if one["kind"] == kind]
        for number, one in enumerate(found):
            one = found[number] = json.loads(json.dumps(one).replace("-vision.", f"-{self.namespace}."))
            metadata = one["metadata"]
            own = {"name": metadata["name"].replace("digits", self.name), "namespace": self.namespace}
            kept = {key: metadata[key] for key in ("labels", "annotations") if key in metadata}
            one["metadata"] = {**kept, **own}
        return found

    def _relabel(self, document: Document, release: str, template: str) -> None:
        """Set a ReplicaSet's or pod's release, template hash and owner."""
        labels = {**self.labels(release), "pod-template-hash": template}
        document["metadata"] |= {"labels": labels, "ownerReferences": self._owners()}
        if document["kind"] == "ReplicaSet":
            document["spec"]["selector"]["matchLabels"] = labels
            document["spec"]["template"]["metadata"]["labels"] = labels

    def _owners(self) -> list[Document]:
        """Return a reference to the InferenceService, since not every test creates the owners in between."""
        status, service = self.kube.request("GET", self._service)
        if status == 404:
            return []
        named = {"apiVersion": service["apiVersion"], "kind": service["kind"], "name": self.name}
        return [{**named, "uid": service["metadata"]["uid"]}]

    def bind(self, pod: Document, node: str = "some-node") -> None:
        """Bind a pod to a node."""
        target = {"kind": "Node", "name": node}
        path = f"{self._core}/pods/{pod['metadata']['name']}/binding"
        self.kube.request("POST", path, {"metadata": {"name": pod["metadata"]["name"]}, "target": target})


def _bare(pod: Document) -> Document:
    """Return a pod without the ServiceAccount and the volumes, which the tests' API server does not have."""
    spec = {key: pod["spec"][key] for key in ("containers", "initContainers") if key in pod["spec"]}
    for one in [*spec["containers"], *spec.get("initContainers", [])]:
        one.pop("volumeMounts", None)
    return {**pod, "spec": {**spec, "terminationGracePeriodSeconds": 30}}


def _container(name: str, **state: Any) -> Document:
    last, restarts = state.pop("last", None), state.pop("restarts", 0)
    document = {
        "name": name,
        "image": "i",
        "imageID": "",
        "ready": False,
        "restartCount": restarts,
        "state": state,
    }
    return {**document, "lastState": {"terminated": last}} if last else document
