"""Merges `kdeploy.toml` and its overrides into one frozen `Config`.

No other package of kdeploy reads this file and its patches, or settings from the environment.
"""

from deployer.config.checks import check_root, is_service_name, to_service_name
from deployer.config.schema import (
    MODEL_NAME_MAX,
    NAME_MAX,
    NAME_PATTERN,
    OLD_MODES,
    PORT_FORWARD,
    USER_OF_NAMESPACE,
    Config,
    KServeTarget,
    LocalTarget,
    Model,
    Scaling,
    Serving,
    Store,
    TargetConfig,
    TorchServeValue,
    Variable,
    VariableSource,
    overlays_of,
)
from deployer.config.settings import (
    FILE_NAME,
    ReadyArchive,
    Settings,
    find_file,
    json_schema,
    load_settings,
    read_file,
)

__all__ = [
    "FILE_NAME",
    "MODEL_NAME_MAX",
    "NAME_MAX",
    "NAME_PATTERN",
    "OLD_MODES",
    "PORT_FORWARD",
    "USER_OF_NAMESPACE",
    "Config",
    "KServeTarget",
    "LocalTarget",
    "Model",
    "ReadyArchive",
    "Scaling",
    "Serving",
    "Settings",
    "Store",
    "TargetConfig",
    "TorchServeValue",
    "Variable",
    "VariableSource",
    "check_root",
    "find_file",
    "is_service_name",
    "json_schema",
    "load_settings",
    "overlays_of",
    "read_file",
    "to_service_name",
]
