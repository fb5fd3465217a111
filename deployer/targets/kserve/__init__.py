"""The KServe target: a namespace of a Kubernetes cluster, through the Kubernetes API only."""

from deployer.targets.kserve.target.cluster import Cluster

__all__ = ["Cluster"]
