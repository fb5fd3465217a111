"""What a user must be allowed to do, once: asked for before the first write, and rendered as a Role."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from msgspec import Struct

from deployer.target import Document
from deployer.targets.kserve.api import Api
from deployer.targets.kserve.refusals import RefusedError
from deployer.targets.kserve.resources import (
    DEPLOYMENT,
    EVENT,
    INFERENCE_SERVICE,
    POD,
    REPLICA_SET,
    REVISION,
    SECRET,
    SERVICE_ACCOUNT,
    SERVING_RUNTIME,
    Resource,
)

ACCOUNT = "kdeploy"  # the name of the Role, and of the ServiceAccount that it is bound to
POD_LOG = Resource("", "v1", "pods/log", "Pod")
_SEEN = ("list", "watch")


class Permission(Struct, frozen=True):
    """One verb on one kind of object."""

    verb: str
    resource: Resource

    def __str__(self) -> str:
        return f"{self.verb} {self.resource.full_name}"


def needed(mode: str) -> list[Permission]:
    """Return what a rollout in a deployment mode does, and what list, logs and delete do."""
    made = (DEPLOYMENT, REPLICA_SET) if mode == "Standard" else (REVISION,)
    verbs: dict[Resource, Sequence[str]] = {
        INFERENCE_SERVICE: ("get", *_SEEN, "create", "patch", "delete"),
        **dict.fromkeys((SERVING_RUNTIME, SERVICE_ACCOUNT, SECRET), ("get", "create", "patch")),
        POD: _SEEN,
        POD_LOG: ("get",),
        EVENT: _SEEN,
        **dict.fromkeys(made, _SEEN),
    }
    return [Permission(verb, resource) for resource, each in verbs.items() for verb in each]


def missing(api: Api, namespace: str, mode: str) -> list[Permission]:
    """Ask the API server which of them this user has not."""
    wanted = needed(mode)
    with ThreadPoolExecutor(max_workers=8) as pool:
        granted = pool.map(lambda one: api.allowed(one.verb, one.resource, namespace), wanted)
        return [one for one, may in zip(wanted, granted, strict=True) if not may]


def require(api: Api, namespace: str, mode: str) -> None:
    """Raise RefusedError, naming every verb and resource, where one is missing."""
    lacking = missing(api, namespace, mode)
    if lacking:
        raise RefusedError(
            f"this user may not {', '.join(map(str, lacking))}",
            where=f"namespace {namespace}",
            hint="`kdeploy render --rbac` prints the Role that grants it",
        )


def render_role(namespace: str, mode: str) -> list[Document]:
    """Render an account for CI with just these permissions in just this namespace."""
    rules: dict[Resource, list[str]] = {}
    for one in needed(mode):
        rules.setdefault(one.resource, []).append(one.verb)
    metadata = {
        "name": ACCOUNT,
        "namespace": namespace,
        "labels": {"app.kubernetes.io/managed-by": "kdeploy"},
    }
    rbac = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "Role",
            "metadata": metadata,
            "rules": [
                {"apiGroups": [resource.group], "resources": [resource.plural], "verbs": verbs}
                for resource, verbs in rules.items()
            ],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": ACCOUNT},
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}],
        },
    ]
