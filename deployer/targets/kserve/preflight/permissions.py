"""The permissions that kdeploy needs: checked before the first write, and rendered as a Role."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial

from msgspec import Struct

from deployer.config import Store
from deployer.findings import PERMISSIONS, Finding, failure, ok, warning
from deployer.observed import Document
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.parallel import ask_all
from deployer.targets.kserve.client.resources import (
    CLAIM,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    EVENT,
    HTTP_ROUTE,
    LIMIT_RANGE,
    POD,
    QUOTA,
    REPLICA_SET,
    Resource,
)
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE, REVISION, WRITTEN

ACCOUNT = "kdeploy"  # name of the Role, and of the ServiceAccount that it is bound to
POD_LOG = Resource("", "v1", "pods/log", "Pod")
POD_EXEC = Resource("", "v1", "pods/exec", "Pod")
_SEEN = ("list", "watch")
# Optional: with them, a rollout deletes a failed pod so that a new one starts immediately, compares quotas,
# reads the route of another user's canary, and writes a PodDisruptionBudget.
OPTIONAL: dict[Resource, Sequence[str]] = {
    POD: ("delete",),
    QUOTA: ("list",),
    LIMIT_RANGE: ("list",),
    HTTP_ROUTE: ("get",),
    DISRUPTION_BUDGET: ("get", "list", "create", "patch", "delete"),
}


class Permission(Struct, frozen=True):
    """One verb on one kind of object."""

    verb: str
    resource: Resource

    def __str__(self) -> str:
        return f"{self.verb} {self.resource.full_name}"


def needed(mode: str, kinds: Collection[Resource] = WRITTEN) -> list[Permission]:
    """Return what all commands together need in a deployment mode, for bundles of some kinds."""
    return [*to_roll_out(kinds, mode, wait=True), Permission("delete", INFERENCE_SERVICE)]


def to_roll_out(kinds: Collection[Resource], mode: str, *, wait: bool) -> list[Permission]:
    """Return what a rollout of documents of some kinds needs; with `wait`, also to observe it."""
    made = (DEPLOYMENT, REPLICA_SET) if mode == "Standard" else (REVISION,)
    seen = dict.fromkeys((INFERENCE_SERVICE, POD, EVENT, *made), _SEEN) | {POD_LOG: ("get",)}
    return [
        *_permissions(dict.fromkeys(kinds, ("get", "create", "patch"))),
        *_permissions({CONTROLLER_REVISION: ("get", "list", "create", "patch", "delete")}),
        *_permissions(seen if wait else {}),
    ]


def needed_for_store(store: Store) -> list[Permission]:
    """Return what the model store needs on the cluster: for one in a claim, a Pod that mounts it."""
    if not store.uri.startswith("pvc://"):
        return []
    return _permissions(
        {
            CLAIM: ("get", "create") if store.create_claim else ("get",),
            POD: ("get", *_SEEN, "create", "delete"),
            # exec over a WebSocket is a GET; API servers from 1.35 on also require `create`.
            POD_EXEC: ("get", "create"),
            EVENT: _SEEN,
        }
    )


def _permissions(verbs: Mapping[Resource, Sequence[str]]) -> list[Permission]:
    return [Permission(verb, resource) for resource, each in verbs.items() for verb in each]


def _verbs(permissions: Iterable[Permission]) -> dict[Resource, list[str]]:
    verbs: dict[Resource, list[str]] = {}
    for one in permissions:
        verbs.setdefault(one.resource, []).append(one.verb)
    return verbs


def check_permissions(api: Api, namespace: str, wanted: Sequence[Permission]) -> Finding:
    """Find out whether this user has all permissions; the finding names every missing verb and resource."""
    granted = ask_all([partial(api.allowed, one.verb, one.resource, namespace) for one in wanted])
    missing = _verbs(one for one, has in zip(wanted, granted, strict=True) if not has)
    if not missing:
        return ok(PERMISSIONS, f"this user has all permissions that kdeploy needs in namespace {namespace}")
    detail = "; ".join(f"{', '.join(verbs)} {resource.full_name}" for resource, verbs in missing.items())
    remedy = "Run `kdeploy render --rbac` to print the Role that grants them."
    return failure(PERMISSIONS, f"this user cannot {detail}", f"namespace {namespace}", remedy)


def check_extras(api: Api, namespace: str, kinds: Collection[Resource]) -> list[Finding]:
    """Find out whether this user can write the kinds that a service can run without."""
    wanted = _permissions({kind: OPTIONAL[kind] for kind in kinds})
    found = check_permissions(api, namespace, wanted)
    if found.status == "ok":
        return []
    names = ", ".join(kind.kind for kind in kinds)
    return [warning("extras", f"there will be no {names}: {found.detail}", found.where, found.remedy)]


def render_role(
    namespace: str, kinds: Collection[Resource], mode: str, more: Sequence[Permission] = ()
) -> list[Document]:
    """Render an account for CI with the permissions to roll out some kinds, optional ones, and `more`."""
    verbs = _verbs(dict.fromkeys([*needed(mode, kinds), *more, *_permissions(OPTIONAL)]))
    labels = {"app.kubernetes.io/managed-by": "kdeploy"}
    metadata = {"name": ACCOUNT, "namespace": namespace, "labels": labels}
    rbac = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "Role",
            "metadata": metadata,
            "rules": [
                {"apiGroups": [resource.group], "resources": [resource.plural], "verbs": each}
                for resource, each in verbs.items()
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
