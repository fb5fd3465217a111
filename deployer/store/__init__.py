"""Model stores: `interface` defines one, `open` opens the one that a config names."""

from deployer.store.interface import PROPERTIES, RECORD, RECORD_MAX, ModelStore, Staging, Stored

__all__ = ["PROPERTIES", "RECORD", "RECORD_MAX", "ModelStore", "Staging", "Stored"]
