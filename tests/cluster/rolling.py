"""A process that applies releases on request: `python -m tests.cluster.rolling KUBECONFIG NAMESPACE WHO`.

Each line on stdin is a service and a release; each line on stdout is the result of applying that release.
"""

from __future__ import annotations

import sys

from deployer.bundle import Bundle
from deployer.config import KServeTarget
from deployer.errors import KdeployError
from deployer.journal import Provenance
from deployer.storage_access import StorageAccess
from deployer.targets.kserve import Cluster
from tests.cluster.calls import roll
from tests.cluster.play import documents


def whole(namespace: str, release: str, name: str = "digits") -> Bundle:
    """Render a release with a Secret and a ServiceAccount that contain its ID."""
    access = StorageAccess(
        data={"AWS_ACCESS_KEY_ID": release}, account_annotations={"example.org/release": release}
    )
    return documents(namespace, release, name=name, access=access)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    kubeconfig, namespace, who = sys.argv[1:]
    with Cluster(KServeTarget(kubeconfig=kubeconfig, deployment_mode="Standard")) as cluster:
        say("ready")
        for line in sys.stdin:
            name, release = line.split()
            try:
                roll(cluster, whole(namespace, release, name), Provenance(who=who))
                say("applied")
            except KdeployError as error:
                say(f"{type(error).__name__}: {error.what}")


if __name__ == "__main__":
    main()
