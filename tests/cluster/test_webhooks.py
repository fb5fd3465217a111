"""Webhooks that add fields, as KServe's defaulter does, cause no difference."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from deployer.diff import compare
from deployer.observed import Document
from deployer.targets.kserve import Cluster
from tests.cluster.calls import roll
from tests.cluster.kube import Kube
from tests.cluster.play import A, Play, documents
from tests.recorded import documents as recorded

# The fields that KServe's defaulter adds (recorded state 01).
ADDED = [
    {"op": "add", "path": "/metadata/annotations/modelFormat", "value": "pytorch"},
    {"op": "add", "path": "/spec/predictor/model/name", "value": ""},
]


class _Defaulter(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        patch = base64.b64encode(json.dumps(ADDED).encode()).decode()
        response = {
            "uid": review["request"]["uid"],
            "allowed": True,
            "patchType": "JSONPatch",
            "patch": patch,
        }
        body = json.dumps(
            {**{key: review[key] for key in ("apiVersion", "kind")}, "response": response}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def defaulter(kube: Kube, namespace: str, tmp_path: Path) -> Iterator[None]:
    """A mutating webhook for the InferenceServices in the test's namespace."""
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Defaulter)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    rule = {
        "apiGroups": ["serving.kserve.io"],
        "apiVersions": ["v1beta1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["inferenceservices"],
    }
    webhook = {
        "name": "defaulter.example.com",
        "clientConfig": {
            "url": f"https://127.0.0.1:{server.server_address[1]}/",
            "caBundle": base64.b64encode(authority.cert_pem.bytes()).decode(),
        },
        "rules": [rule],
        "namespaceSelector": {"matchLabels": {"defaulted": namespace}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
    kube.merge(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": {"defaulted": namespace}}})
    kube.create(path, {"metadata": {"name": namespace}, "webhooks": [webhook]})
    try:
        _wait_until_called(kube, namespace)
        yield
    finally:
        kube.delete(f"{path}/{namespace}")
        server.shutdown()
        thread.join()
        server.server_close()


def _wait_until_called(kube: Kube, namespace: str) -> None:
    """Wait until the API server calls the webhook, a moment after its registration."""
    path = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices?dryRun=All"
    service = documents(namespace).service

    def is_called() -> bool:
        return "modelFormat" in kube.create(path, service)["metadata"]["annotations"]

    kube._until("the webhook was not called", is_called)


def test_fields_added_by_a_webhook_are_not_a_difference(
    defaulter: None, cluster: Cluster, kube: Kube, namespace: str
) -> None:
    made = documents(namespace)
    reference = roll(cluster, made)
    play = Play(kube, namespace)
    play.replica_set(A, available=1)
    play.ready()
    live = cluster.services.get(reference)
    assert live
    assert live.document["spec"]["predictor"]["model"]["name"] == ""
    assert cluster.services.serves(made, live)
    assert [compare(before, after) for before, after in cluster.services.preview(made)] == [None, None]


def test_the_test_webhook_adds_the_fields_of_kserves_defaulter() -> None:
    (service,) = [one for one in recorded("01") if one["kind"] == "InferenceService"]
    written: Document = documents("vision").service
    annotations = set(service["metadata"]["annotations"]) - set(written["metadata"]["annotations"])
    model = set(service["spec"]["predictor"]["model"]) - set(written["spec"]["predictor"]["model"])
    assert (annotations, model) == ({"modelFormat"}, {"name"})
