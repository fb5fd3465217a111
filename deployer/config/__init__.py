"""`kdeploy.toml` and what overrides it, folded once into a frozen `Config`.

Nothing else in kdeploy reads this file, or the environment for settings.
"""

from deployer.config.checks import check_root
from deployer.config.schema import (
    NAME_MAX,
    NAME_PATTERN,
    PORT_FORWARD,
    Config,
    KServeTarget,
    LocalTarget,
    Model,
    Scaling,
    Serving,
    Store,
    TargetConfig,
    TorchServeValue,
)
from deployer.config.settings import FILE_NAME, Settings, find_file, json_schema, load_settings, read_file

__all__ = [
    "FILE_NAME",
    "NAME_MAX",
    "NAME_PATTERN",
    "PORT_FORWARD",
    "Config",
    "KServeTarget",
    "LocalTarget",
    "Model",
    "Scaling",
    "Serving",
    "Settings",
    "Store",
    "TargetConfig",
    "TorchServeValue",
    "check_root",
    "find_file",
    "json_schema",
    "load_settings",
    "read_file",
]
