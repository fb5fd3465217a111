"""The local target: a one-node KServe, on the same documents, the same command, the same protocol."""

from deployer.targets.local.target import OneNode

__all__ = ["OneNode"]
