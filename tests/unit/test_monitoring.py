"""The PodMonitor and the dashboard of `kdeploy render --monitoring`."""

import json
import re

from deployer.manifest import encode_yaml, render_runtime
from deployer.monitoring import render_monitoring
from deployer.observed import Reference

MONITOR, CONFIG_MAP = render_monitoring(Reference("team", "digits"), "mnist")


def test_the_monitor_scrapes_the_metrics_port_of_every_pod_of_the_service_once() -> None:
    assert MONITOR["spec"]["selector"] == {"matchLabels": {"serving.kserve.io/inferenceservice": "digits"}}
    [endpoint] = MONITOR["spec"]["podMetricsEndpoints"]
    kept, address, _ = endpoint["relabelings"]
    [container] = render_runtime()["containers"]
    assert (kept["action"], kept["regex"]) == ("keep", container["name"])
    # A target is one declared port; without a port in the monitor, the address is what the rule makes it.
    assert len(container["ports"]) == 1
    assert not {"port", "targetPort", "portNumber"} & set(endpoint)
    annotations = render_runtime()["annotations"]
    port = annotations["prometheus.kserve.io/port"]
    assert (address["targetLabel"], address["replacement"]) == ("__address__", f"$1:{port}")
    assert endpoint["path"] == annotations["prometheus.kserve.io/path"]


def test_the_dashboard_is_loaded_by_grafanas_sidecar_and_asks_for_this_model() -> None:
    assert CONFIG_MAP["metadata"]["labels"]["grafana_dashboard"] == "1"
    [(name, text)] = CONFIG_MAP["data"].items()
    assert name == "digits-dashboard.json"
    panels = json.loads(text)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == 8
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert all('namespace="team", pod=~"digits-.*"' in query for query in queries)
    assert all(query.count("(") == query.count(")") for query in queries)
    assert 'model_name="mnist"' in queries[0]
    assert "\\u00b5s" in text


def test_both_are_documents_that_kubectl_applies_and_people_can_read() -> None:
    text = encode_yaml([MONITOR, CONFIG_MAP])
    assert re.search(r"digits-dashboard.json: \|\n    \{\n", text)
    for document in (MONITOR, CONFIG_MAP):
        assert document["metadata"]["namespace"] == "team"
