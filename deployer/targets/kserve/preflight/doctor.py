"""What a deployment to a cluster needs, found out without changing anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import UNSET

from deployer.config import KServeTarget, Store
from deployer.errors import IntegrityError, KdeployError, StoreError
from deployer.findings import Finding, failure, ok, warning
from deployer.observed import Document
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.preflight.capabilities import Discovery
from deployer.targets.kserve.preflight.facts import read_facts
from deployer.targets.kserve.preflight.permissions import check_permissions, needed, needed_for_store
from deployer.targets.kserve.preflight.rules.cluster import ClusterFacts, check
from deployer.targets.kserve.preflight.rules.documents import gpus_of, mode_of, service_of

_ASK = "ask who runs the cluster"


def examine(
    api: Api,
    discovery: Discovery,
    target: KServeTarget,
    store: Store,
    namespace: str,
    render: Callable[[], Sequence[Document]],
    admit: Callable[[Sequence[Document]], None],
) -> list[Finding]:
    """Look at everything that a rollout of a project's documents to a namespace depends on. Changes nothing.

    `render` makes the documents and `admit` has the API server try them, webhooks included; where either
    fails, that is one of the findings.
    """
    try:
        found = [ok("cluster", f"Kubernetes {discovery.kubernetes} at {api.where}"), _kserve(discovery)]
        if not discovery.kserve:
            return found
        mode = target.deployment_mode or discovery.mode
        knative = ok("Knative", "installed" if discovery.knative else "not installed")
        wanted = [*needed(mode), *needed_for_store(store)]
        found += [knative, _ingress(discovery), check_permissions(api, namespace, wanted)]
    except KdeployError as error:
        return [_of(error, "cluster")]
    try:
        documents = render()
        facts = read_facts(api, discovery, documents, target, store)
    except KdeployError as error:
        name = "model store" if isinstance(error, StoreError | IntegrityError) else "release"
        return [*found, _of(error, name)]
    found += [*check(documents, facts), *_unread(documents, facts, target)]
    if not any(one.status == "failure" for one in found):
        found.append(_admitted(documents, admit))
    return found


def _admitted(documents: Sequence[Document], admit: Callable[[Sequence[Document]], None]) -> Finding:
    try:
        admit(documents)
    except KdeployError as error:
        return _of(error, "admission")
    return ok("admission", "the API server and its webhooks accept the documents")


def _of(error: KdeployError, name: str) -> Finding:
    place = f" ({error.where})" if error.where else ""
    return failure(name, f"{error.what}{place}", error.where or "", error.hint or "")


def _kserve(discovery: Discovery) -> Finding:
    if not discovery.kserve:
        return failure("KServe", "it is not installed", "", "install KServe, or choose another context")
    version = discovery.version or "of a version that cannot be read"
    default = discovery.config.deployment_mode if discovery.config else None
    return ok("KServe", f"{version}, {default} mode by default" if default else version)


def _ingress(discovery: Discovery) -> Finding:
    config = discovery.config
    if config is None:
        return ok("ingress", "as KServe's ConfigMap says, which cannot be read")
    way = f"Gateway {config.gateway}" if config.gateway else f"ingress class {config.ingress_class}"
    hosts = config.path_template or config.domain_template
    return ok("ingress", f"{way}, {config.url_scheme}://, {hosts}, domain {config.domain}")


def _unread(documents: Sequence[Document], facts: ClusterFacts, target: KServeTarget) -> list[Finding]:
    """Return what could not be looked at, because this user may not read it."""
    service = service_of(documents)
    found = []
    if not facts.config and not target.deployment_mode:
        found.append(
            warning(
                "deployment mode",
                f"{mode_of(service)} is a guess: KServe's ConfigMap cannot be read",
                "",
                "set deployment-mode for this target",
            )
        )
    if gpus_of(service) and facts.nodes is UNSET:
        found.append(warning("GPU", "nodes may not be listed", "", f"{_ASK} whether its nodes have GPUs"))
    if service["spec"]["predictor"]["model"]["storageUri"].startswith("pvc://") and facts.claim is UNSET:
        found.append(warning("claim", "claims may not be read", "", f"{_ASK} whether it is there, and Bound"))
    ours = any(document["kind"] == "ServingRuntime" for document in documents)
    if not ours and facts.runtime is UNSET:
        remedy = f"{_ASK} whether it is there, and serves pytorch"
        found.append(warning("runtime", "the cluster's runtimes may not be read", "", remedy))
    return found
