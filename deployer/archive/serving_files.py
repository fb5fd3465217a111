"""Adds the files that `[serving]` names to an archive: the metrics configuration and the warm-up samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deployer.archive.extra_files import ExtraFiles
from deployer.archive.files import Files
from deployer.archive.model_config import read_mapping
from deployer.config import Serving
from deployer.errors import ArchiveError

METRICS_KEY = "kdeploy.toml: serving.metrics-config"
WARM_UP_KEY = "kdeploy.toml: serving.warm-up"
METRICS_CONFIG = "kdeploy_metrics.yaml"
SAMPLES = "kdeploy_warm_up"  # the folder of the samples
EXPECTED = ".expected.json"  # the end of the name of a sample's expected answer, which is not sent

_MOST_SAMPLES = 100
_KINDS = ("counter", "gauge", "histogram")
_FIELDS = ("name", "unit", "dimensions")


def add_serving_files(files: Files, serving: Serving, root: Path) -> None:
    """Add the files that `[serving]` names. Raises ArchiveError."""
    if serving.metrics_config is not None:
        path = serving.metrics_config
        files.add(METRICS_KEY, root / path, METRICS_CONFIG, ours=True)
        _check_metrics(read_mapping(files.content(METRICS_KEY, METRICS_CONFIG), path), path)
    found = ExtraFiles(root, key=WARM_UP_KEY).find(serving.warm_up)
    samples = [file for _, file in found if not file.name.endswith(EXPECTED)]
    if len(samples) > _MOST_SAMPLES:
        what = f"{len(samples)} warm-up samples; at most {_MOST_SAMPLES} are allowed"
        raise ArchiveError(what, where=WARM_UP_KEY, hint="Name fewer files: each worker sends all of them.")
    if serving.warm_up and not samples:
        raise ArchiveError("no warm-up sample found", where=WARM_UP_KEY, hint="Name files with inputs.")
    for sample in samples:
        files.add(WARM_UP_KEY, sample, f"{SAMPLES}/{sample.name}", ours=True)


def _check_metrics(document: dict[Any, Any], where: str) -> None:
    """Raise ArchiveError for a metrics configuration that TorchServe's worker or frontend rejects."""
    for section in ("ts_metrics", "model_metrics"):
        kinds = document.get(section)
        if not isinstance(kinds, dict) or not kinds:
            hint = "Write the sections ts_metrics and model_metrics, as in TorchServe's metrics.yaml."
            raise ArchiveError(f"section {section} is missing or empty", where=where, hint=hint)
        for kind, metrics in kinds.items():
            if kind not in _KINDS:
                what = f"invalid kind {kind!r} of metrics in {section}"
                raise ArchiveError(what, where=where, hint=f"Write {', '.join(_KINDS)}.")
            for metric in metrics or []:
                missing = [name for name in _FIELDS if not isinstance(metric, dict) or name not in metric]
                if missing:
                    what = f"a {kind} of {section} has no {missing[0]}"
                    raise ArchiveError(what, where=where, hint=f"A metric has {', '.join(_FIELDS)}.")
