"""The local target: serves releases on this machine as a one-node KServe."""

from deployer.targets.local.target import OneNode

__all__ = ["OneNode"]
