"""Reads the settings of TorchServe's model-config.yaml that are also kdeploy's, as defaults of `[serving]`.

TorchServe uses these keys only for a model that it loads without a `model_snapshot`, and kdeploy always
writes one. A file that cannot be read has no settings here: the archive reports it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from deployer.errors import ConfigError
from deployer.files import read_bytes

# Keys of the file, the keys of `[serving]`, and TorchServe's minimum.
_SERVING = {
    "minWorkers": ("min-workers", 1),
    "maxWorkers": ("max-workers", 1),
    "batchSize": ("batch-size", 1),
    "maxBatchDelay": ("max-batch-delay", 0),
    "responseTimeout": ("response-timeout", 1),
    "startupTimeout": ("startup-timeout", 1),
}

# What PyYAML's constructors raise, for `!!int ""` and the like.
UNWRAPPED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


class ModelConfig(Struct, frozen=True):
    """The content of a model-config.yaml, and its path as kdeploy.toml names it."""

    file: str = ""
    values: dict[Any, Any] = {}

    def defaults(self, serving: Mapping[str, Any]) -> dict[str, int]:
        """Return the values for the keys of `[serving]` that are not set. Raises ConfigError."""
        found = {key: self._number(name, least) for name, (key, least) in _SERVING.items() if self._has(name)}
        least_workers = found.get("min-workers", 1)
        if "max-workers" not in found and least_workers > 1:
            found["max-workers"] = least_workers
        return {key: value for key, value in found.items() if key not in serving}

    def overruled(self, serving: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield each key of `[serving]` that differs from the file, and the file's value for a message."""
        for name, (key, _) in _SERVING.items():
            if self._has(name) and serving[key] != self.values[name]:
                yield key, f"{name}: {self.values[name]} in {self.file}"

    def doubts(self, gpus: int) -> Iterator[str]:
        """Yield a warning for each setting that needs more than this number of GPUs per replica."""
        if str(self.values.get("deviceType")).lower() == "gpu" and not gpus:
            yield f"{self.file}: TorchServe ignores deviceType: gpu, because serving.gpu is 0"
        devices = self.values.get("deviceIds")
        numbers = [one for one in devices if isinstance(one, int)] if isinstance(devices, list) else []
        if numbers and max(numbers) >= gpus:
            yield f"{self.file}: TorchServe ignores deviceIds: {numbers}, because serving.gpu is {gpus}"

        torchrun = self.values.get("torchrun")
        processes = torchrun.get("nproc-per-node") if isinstance(torchrun, dict) else None
        if isinstance(processes, int) and 0 < gpus < processes:
            yield f"{self.file}: nproc-per-node is {processes}, a GPU for each, but serving.gpu is {gpus}"

    def _has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def _number(self, name: str, least: int) -> int:
        value = self.values[name]
        if type(value) is not int or value < least:
            raise ConfigError(
                f"invalid value {value!r}: TorchServe reads a whole number of {least} or more",
                where=f"{self.file}: {name}",
                hint="Correct the value, or remove the line.",
            )
        return value


def read_model_config(file: object, root: Path) -> ModelConfig:
    """Read the file that `model.config-file` names, relative to `root`."""
    if not isinstance(file, str) or not file:
        return ModelConfig()
    import yaml

    try:
        values = yaml.safe_load(read_bytes(root / file))
    except (OSError, yaml.YAMLError, *UNWRAPPED):
        return ModelConfig()
    return ModelConfig(file, values) if isinstance(values, dict) else ModelConfig()
