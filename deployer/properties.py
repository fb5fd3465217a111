"""Renders TorchServe's `config.properties` from the config, and reads it back.

TorchServe has two parsers: Java's Properties, and the launcher's line reader. Both read the same entries,
because every entry is one line, `key=value`, without escapes or continuation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from deployer.config import Config, TorchServeValue
from deployer.errors import ConfigError

MODELS_MOUNT = "/mnt/models"  # where KServe mounts the release
INFERENCE_PORT, MANAGEMENT_PORT, METRICS_PORT = 8080, 8081, 8082
METRICS_CONFIG = "kdeploy_metrics.yaml"  # in the model archive; the first process unpacks it
GRPC_PORT = 9000  # of the first process, for the protocol version grpc-v2
GRPC_INFERENCE_PORT, GRPC_MANAGEMENT_PORT = 7070, 7071

# Entries that `[torchserve]` can change.
DEFAULTS: dict[str, TorchServeValue] = {
    "grpc_inference_port": GRPC_INFERENCE_PORT,
    "grpc_management_port": GRPC_MANAGEMENT_PORT,
    "enable_metrics_api": True,
    "metrics_mode": "prometheus",
    "disable_token_authorization": True,
}
# Keys that other parts of kdeploy depend on (probes, ports, batches), with the reason.
_OURS = {
    "inference_address": "kdeploy's ServingRuntime fixes the ports",
    "management_address": "kdeploy's ServingRuntime fixes the ports",
    "metrics_address": "kdeploy's ServingRuntime fixes the ports",
    "model_store": "KServe mounts the release there",
    "load_models": "model_snapshot names the model",
    "model_snapshot": "kdeploy makes it from [model] and [serving]",
    "install_py_dep_per_model": "kdeploy sets it according to model.requirements-file",
    "service_envelope": "kdeploy's handler adapter reads V1 and V2 itself, and an envelope breaks batching",
    "max_request_size": "set serving.max-request-size",
    "max_response_size": "set serving.max-response-size",
    "number_of_gpu": "set serving.gpu",
    "initial_worker_port": "the local target assigns one to each TorchServe",
}


def render_properties(config: Config, *, requirements: bool) -> str:
    """Return the `config.properties` of a release, one `key=value` per line.

    `requirements`: whether the model archive has a requirements file. Raises ConfigError for an entry of
    `[torchserve]` that kdeploy reserves or that cannot be written on one line.
    """
    entries: dict[str, TorchServeValue] = {
        "inference_address": f"http://0.0.0.0:{INFERENCE_PORT}",
        # The management API has no authentication, so only the pod can reach it.
        "management_address": f"http://127.0.0.1:{MANAGEMENT_PORT}",
        "metrics_address": f"http://0.0.0.0:{METRICS_PORT}",
        **DEFAULTS,
        # Without a metrics.yaml, the metrics of a handler are published as it names them.
        "model_metrics_auto_detect": config.serving.metrics_config is None,
        "install_py_dep_per_model": requirements,
        "job_queue_size": 1000,
        "max_request_size": config.serving.max_request_size,
        "max_response_size": config.serving.max_response_size,
        "number_of_gpu": config.serving.gpu,
    }
    for key, value in config.torchserve.items():
        check_entry(key, value)
        entries[key] = value
    entries["model_store"] = f"{MODELS_MOUNT}/model-store"
    if config.serving.metrics_config is not None:
        _check_metrics(config)
        entries["metrics_config"] = METRICS_CONFIG
    entries["model_snapshot"] = _model_snapshot(config)
    return encode_properties(entries)


def _model_snapshot(config: Config) -> str:
    serving = config.serving
    version = {
        "defaultVersion": True,
        "marName": f"{config.model.name}.mar",
        "minWorkers": serving.min_workers,
        "maxWorkers": serving.max_workers,
        "batchSize": serving.batch_size,
        "maxBatchDelay": serving.max_batch_delay,
        "responseTimeout": serving.response_timeout,
        "startupTimeout": serving.startup_timeout,
    }
    snapshot = {
        "name": "startup.cfg",
        "modelCount": 1,
        "models": {config.model.name: {config.model.version: version}},
    }
    return json.dumps(snapshot, separators=(",", ":"))


def _check_metrics(config: Config) -> None:
    """Raise ConfigError if the metrics configuration is set twice, or nothing would unpack it."""
    if "metrics_config" in config.torchserve:
        raise ConfigError(
            "serving.metrics-config is set, too",
            where="kdeploy.toml: torchserve.metrics_config",
            hint="Remove one of the two.",
        )
    if config.serving.runtime:
        raise ConfigError(
            f"ServingRuntime {config.serving.runtime} cannot read the metrics configuration",
            where="kdeploy.toml: serving.metrics-config",
            hint="Remove serving.runtime, to use kdeploy's own runtime.",
        )


def check_entry(key: str, value: TorchServeValue) -> None:
    """Raise ConfigError for an entry of `[torchserve]` that kdeploy reserves, or that is not one line."""
    where = f"kdeploy.toml: torchserve.{key}"
    if key in _OURS:
        raise ConfigError(f"kdeploy reserves {key}: {_OURS[key]}", where=where, hint="Remove the line.")
    if not key or not all(part.isidentifier() for part in key.split(".")):
        raise ConfigError(
            f"invalid key {key!r} of config.properties",
            where="kdeploy.toml: torchserve",
            hint="Use letters, digits and _, with dots in between.",
        )
    text = _encode(value)
    if not text.isascii() or not text.isprintable() or "\\" in text or text != text.strip():
        what = "invalid value: it has a line break, a backslash, outer spaces or a non-ASCII character"
        hint = "Write one line of ASCII. TorchServe's two parsers would read this value differently."
        raise ConfigError(what, where=where, hint=hint)


def _encode(value: TorchServeValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def encode_properties(entries: Mapping[str, TorchServeValue]) -> str:
    """Return the text of a `config.properties` with these entries, in their order."""
    return "".join(f"{key}={_encode(value)}\n" for key, value in entries.items())


def decode_properties(text: str) -> dict[str, str]:
    """Parse the text of a `config.properties`, as TorchServe's launcher does."""
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.split("=", 1) for line in lines if not line.startswith("#") and "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}
