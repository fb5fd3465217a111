"""Prometheus' text format, as TorchServe writes it."""

from hypothesis import given
from hypothesis import strategies as st

from deployer.predict.metrics import Metric, parse_metrics

TEXT = """\
# HELP WordsSeen Torchserve prometheus counter metric with unit: Count
# TYPE WordsSeen counter
WordsSeen{ModelName="meters",Level="Model",Hostname="vm",} 5.0
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{model_name="meters",model_version="default",hostname="vm",} 4.0
# TYPE Seconds histogram
Seconds_bucket{ModelName="meters",le="0.005",} 1.0
Seconds_sum{ModelName="meters",} 0.25
# TYPE GPUUtilization gauge
CPUUtilization{Level="Host"} 1E2 1796140035
up NaN
broken{
also broken x
"""


def test_values_have_their_kind_labels_and_model() -> None:
    found = list(parse_metrics(TEXT))
    assert [(one.name, one.kind, one.value, one.model) for one in found[:5]] == [
        ("WordsSeen", "counter", 5.0, "meters"),
        ("ts_inference_requests_total", "counter", 4.0, "meters"),
        ("Seconds_bucket", "histogram", 1.0, "meters"),
        ("Seconds_sum", "histogram", 0.25, "meters"),
        ("CPUUtilization", "untyped", 100.0, None),
    ]
    assert found[2].labels == {"ModelName": "meters", "le": "0.005"}
    assert [one.name for one in found[5:]] == ["up"]


def test_labels_are_unescaped() -> None:
    line = r'a{x="q\"\\\n{,}", y="z"} 1'
    assert list(parse_metrics(line)) == [Metric("a", "untyped", {"x": 'q"\\\n{,}', "y": "z"}, 1.0)]


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    list(parse_metrics(text))
