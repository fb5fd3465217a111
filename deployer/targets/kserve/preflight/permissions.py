"""What a user must be allowed to do, once: asked for before the first write, and rendered as a Role."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from msgspec import Struct

from deployer.config import Store
from deployer.findings import PERMISSIONS, Finding, failure, ok
from deployer.observed import Document
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.parallel import ask_all
from deployer.targets.kserve.client.resources import (
    CLAIM,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    EVENT,
    HTTP_ROUTE,
    LIMIT_RANGE,
    POD,
    QUOTA,
    REPLICA_SET,
    SECRET,
    SERVICE_ACCOUNT,
    Resource,
)
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE, REVISION, SERVING_RUNTIME

ACCOUNT = "kdeploy"  # the name of the Role, and of the ServiceAccount that it is bound to
POD_LOG = Resource("", "v1", "pods/log", "Pod")
POD_EXEC = Resource("", "v1", "pods/exec", "Pod")
_SEEN = ("list", "watch")
# What a rollout does without, and better with: a failed pod that is deleted starts again at once, quotas are
# compared, somebody's canary is told by its route.
HELPFUL: dict[Resource, Sequence[str]] = {
    POD: ("delete",),
    QUOTA: ("list",),
    LIMIT_RANGE: ("list",),
    HTTP_ROUTE: ("get",),
}
WRITTEN = (INFERENCE_SERVICE, SERVING_RUNTIME, SERVICE_ACCOUNT, SECRET)


class Permission(Struct, frozen=True):
    """One verb on one kind of object."""

    verb: str
    resource: Resource

    def __str__(self) -> str:
        return f"{self.verb} {self.resource.full_name}"


def needed(mode: str, kinds: Collection[Resource] = WRITTEN) -> list[Permission]:
    """Return what all commands together do in a deployment mode, with bundles of some kinds."""
    return [*to_roll_out(kinds, mode, wait=True), Permission("delete", INFERENCE_SERVICE)]


def to_roll_out(kinds: Collection[Resource], mode: str, *, wait: bool) -> list[Permission]:
    """Return what a rollout of documents of some kinds does; to wait it reads what KServe makes of them."""
    made = (DEPLOYMENT, REPLICA_SET) if mode == "Standard" else (REVISION,)
    seen = dict.fromkeys((INFERENCE_SERVICE, POD, EVENT, *made), _SEEN) | {POD_LOG: ("get",)}
    return [
        *(Permission(verb, resource) for resource in kinds for verb in ("get", "create", "patch")),
        *(Permission(verb, CONTROLLER_REVISION) for verb in ("get", "list", "create", "patch", "delete")),
        *(Permission(verb, resource) for resource, verbs in seen.items() for verb in verbs if wait),
    ]


def needed_for_store(store: Store) -> list[Permission]:
    """Return what the model store itself does on the cluster: a Pod mounts it, where it is in a claim."""
    if not store.uri.startswith("pvc://"):
        return []
    verbs: dict[Resource, Sequence[str]] = {
        CLAIM: ("get", "create") if store.create_claim else ("get",),
        POD: ("get", *_SEEN, "create", "delete"),
        # By WebSocket exec is a GET; API servers from 1.35 on want `create` as well.
        POD_EXEC: ("get", "create"),
        EVENT: _SEEN,
    }
    return [Permission(verb, resource) for resource, each in verbs.items() for verb in each]


def missing(api: Api, namespace: str, wanted: Sequence[Permission]) -> list[Permission]:
    """Ask the API server which permissions this user has not."""
    granted = ask_all([partial(api.allowed, one.verb, one.resource, namespace) for one in wanted])
    return [one for one, may in zip(wanted, granted, strict=True) if not may]


def check_permissions(api: Api, namespace: str, wanted: Sequence[Permission]) -> Finding:
    """Find out whether this user may do all that is wanted; every verb and resource missing is named."""
    lacking = missing(api, namespace, wanted)
    if not lacking:
        return ok(PERMISSIONS, f"all that are needed in namespace {namespace}")
    verbs: dict[Resource, list[str]] = {}
    for one in lacking:
        verbs.setdefault(one.resource, []).append(one.verb)
    detail = "; ".join(f"{', '.join(each)} {resource.full_name}" for resource, each in verbs.items())
    remedy = "`kdeploy render --rbac` prints the Role that grants it"
    return failure(PERMISSIONS, f"this user may not {detail}", f"namespace {namespace}", remedy)


def render_role(
    namespace: str, kinds: Collection[Resource], mode: str, more: Sequence[Permission] = ()
) -> list[Document]:
    """Render an account for CI: what a rollout of some kinds needs, what helps it, and more."""
    rules: dict[Resource, list[str]] = {}
    helpful = [Permission(verb, resource) for resource, verbs in HELPFUL.items() for verb in verbs]
    for one in dict.fromkeys([*needed(mode, kinds), *more, *helpful]):
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
