"""The files that `[serving]` names: metrics configuration and warm-up samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.archive import Archive, DigestCache, plan_archive
from deployer.config import Model, Serving
from deployer.errors import ArchiveError

METRICS = (
    "ts_metrics: {counter: []}\nmodel_metrics: {counter: [{name: Seen, unit: Count, dimensions: [a]}]}\n"
)


def plan(root: Path, digests: DigestCache, **serving: object) -> Archive:
    model = Model(name="m", version="1.0", handler="handler.py")
    return plan_archive(model, root, digests, serving=Serving(**serving))


def names(archive: Archive) -> list[str]:
    """Return the members that `[serving]` names."""
    found = [member.name for member in archive.members]
    return [name for name in found if name.startswith("kdeploy_warm_up/") or name.endswith(".yaml")]


def test_the_metrics_configuration_is_in_the_archive_and_changes_its_digest(
    root: Path, digests: DigestCache
) -> None:
    (root / "monitoring").mkdir()
    file = root / "monitoring" / "my.yaml"
    file.write_text(METRICS)
    first = plan(root, digests, metrics_config="monitoring/my.yaml")
    assert names(first) == ["kdeploy_metrics.yaml"]
    file.write_text(METRICS.replace("Seen", "Heard"))
    assert plan(root, digests, metrics_config="monitoring/my.yaml").digest != first.digest


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "not a YAML mapping"),
        ("a: [", "invalid YAML"),
        ("ts_metrics: {counter: []}", "section model_metrics is missing or empty"),
        (METRICS.replace("ts_metrics", "metrics"), "section ts_metrics is missing or empty"),
        (METRICS.replace("{counter: []}", "[1]"), "section ts_metrics is missing or empty"),
        (
            METRICS.replace("{counter: [{", "{counters: [{"),
            "invalid kind 'counters' of metrics in model_metrics",
        ),
        (METRICS.replace("unit: Count, ", ""), "a counter of model_metrics has no unit"),
        (METRICS.replace("[{name: Seen, unit: Count, dimensions: [a]}]", "[Seen]"), "has no name"),
    ],
)
def test_a_metrics_configuration_that_torchserve_rejects_is_an_error(
    root: Path, digests: DigestCache, text: str, error: str
) -> None:
    (root / "metrics.yaml").write_text(text)
    with pytest.raises(ArchiveError, match=error) as caught:
        plan(root, digests, metrics_config="metrics.yaml")
    assert (caught.value.where or "").startswith("metrics.yaml")


def test_a_missing_metrics_configuration_is_an_error_with_its_key(root: Path, digests: DigestCache) -> None:
    with pytest.raises(ArchiveError, match=r"metrics\.yaml") as caught:
        plan(root, digests, metrics_config="metrics.yaml")
    assert caught.value.where == "kdeploy.toml: serving.metrics-config"


def test_samples_are_in_the_archive_without_their_expected_answers(root: Path, digests: DigestCache) -> None:
    (root / "samples").mkdir()
    for name in ("a.jpg", "a.jpg.expected.json", "b.json"):
        (root / "samples" / name).write_bytes(b"{}")
    expected = ["kdeploy_warm_up/a.jpg", "kdeploy_warm_up/b.json"]
    for patterns in (("samples",), ("samples/*",), ("samples/a.jpg", "samples/*.json")):
        assert names(plan(root, digests, warm_up=patterns)) == expected
    assert not names(plan(root, digests))


@pytest.mark.parametrize(
    ("patterns", "error"),
    [
        (("samples/*.png",), "matches no file"),
        (("missing.json",), "missing.json not found"),
        (("samples/*.expected.json",), "no warm-up sample found"),
        (("many",), "101 warm-up samples; at most 100 are allowed"),
        (("samples", "other"), "two files would have the name"),
    ],
)
def test_a_sample_that_cannot_be_packed_is_an_error_with_its_key(
    root: Path, digests: DigestCache, patterns: tuple[str, ...], error: str
) -> None:
    for folder in ("samples", "other", "many"):
        (root / folder).mkdir()
    (root / "samples" / "a.jpg").write_bytes(b"1")
    (root / "samples" / "a.jpg.expected.json").write_bytes(b"1")
    (root / "other" / "a.jpg").write_bytes(b"2")
    for number in range(101):
        (root / "many" / f"{number}.txt").write_bytes(b"x")
    with pytest.raises(ArchiveError, match=error) as caught:
        plan(root, digests, warm_up=patterns)
    assert caught.value.where == "kdeploy.toml: serving.warm-up"
