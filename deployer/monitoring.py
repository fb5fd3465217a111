"""Renders what a cluster needs to watch a service: a PodMonitor and a Grafana dashboard. Pure.

A PodMonitor, because the Services of KServe have no metrics port. The container declares no metrics port,
either, so the monitor sets the address itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from deployer.observed import Document, Reference
from deployer.properties import METRICS_PORT

_CONTAINER = "kserve-container"
_OF_MODEL = "model_name"  # the label of the frontend's metrics


def render_monitoring(service: Reference, model: str) -> list[Document]:
    """Return a PodMonitor for the pods of a service, and a ConfigMap with a dashboard for its model."""
    return [_pod_monitor(service), _dashboard(service, model)]


def _pod_monitor(service: Reference) -> Document:
    endpoint = {
        "path": "/metrics",
        "interval": "15s",
        "relabelings": [
            {
                "action": "keep",
                "sourceLabels": ["__meta_kubernetes_pod_container_name"],
                "regex": _CONTAINER,
            },
            {
                "action": "replace",
                "sourceLabels": ["__meta_kubernetes_pod_ip"],
                "regex": "(.*)",
                "replacement": f"$1:{METRICS_PORT}",
                "targetLabel": "__address__",
            },
            {
                "action": "replace",
                "sourceLabels": ["__meta_kubernetes_pod_label_kdeploy_dev_release"],
                "targetLabel": "release",
            },
        ],
    }
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": _metadata(service, service.name),
        "spec": {
            "selector": {"matchLabels": {"serving.kserve.io/inferenceservice": service.name}},
            "podMetricsEndpoints": [endpoint],
        },
    }


def _dashboard(service: Reference, model: str) -> Document:
    of_pods = f'namespace="{service.namespace}", pod=~"{service.name}-.*"'
    requests = f'rate(ts_inference_requests_total{{{of_pods}, {_OF_MODEL}="{model}"}}[5m])'
    handled = f'rate(ts_inference_latency_microseconds{{{of_pods}, {_OF_MODEL}="{model}"}}[5m])'
    queued = f'rate(ts_queue_latency_microseconds{{{of_pods}, {_OF_MODEL}="{model}"}}[5m])'
    panels = [
        ("Requests", "reqps", [(f"sum by (release) ({requests})", "{{release}}")]),
        (
            "Server errors (5xx)",
            "reqps",
            [(f"sum by (release) (rate(Requests5XX{{{of_pods}}}[5m]))", "{{release}}")],
        ),
        (
            "Mean latency",
            "µs",
            [
                (f"sum by (release) ({handled}) / sum by (release) ({requests})", "{{release}}"),
                (f"sum by (release) ({queued}) / sum by (release) ({requests})", "{{release}} in the queue"),
            ],
        ),
        ("Time in the handler", "ms", [(f"avg by (release) (HandlerTime{{{of_pods}}})", "{{release}}")]),
        ("CPU of the node", "percent", [(f"CPUUtilization{{{of_pods}}}", "{{pod}}")]),
        ("Memory of the node", "percent", [(f"MemoryUtilization{{{of_pods}}}", "{{pod}}")]),
        ("GPU", "percent", [(f"GPUUtilization{{{of_pods}}}", "{{pod}}")]),
        ("GPU memory", "percent", [(f"GPUMemoryUtilization{{{of_pods}}}", "{{pod}}")]),
    ]
    document = {
        "uid": f"kdeploy-{service.namespace}-{service.name}"[:40],
        "title": f"{service.namespace}/{service.name}",
        "tags": ["kdeploy"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
            ]
        },
        "panels": [_panel(number, *panel) for number, panel in enumerate(panels)],
    }
    name = f"{service.name}-dashboard"
    metadata = _metadata(service, name)
    # Grafana's sidecar loads every ConfigMap with this label.
    metadata["labels"]["grafana_dashboard"] = "1"
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {f"{name}.json": json.dumps(document, indent=1) + "\n"},
    }


def _panel(number: int, title: str, unit: str, queries: Sequence[tuple[str, str]]) -> dict[str, Any]:
    datasource = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": datasource,
        "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend, "datasource": datasource}
            for index, (query, legend) in enumerate(queries)
        ],
    }


def _metadata(service: Reference, name: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": "kdeploy", "kdeploy.dev/service": service.name}
    return {"name": name, "namespace": service.namespace, "labels": labels}
