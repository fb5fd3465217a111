"""Connects to a service on a cluster, and reads its logs. Implements deployer.targets.protocols.Reach."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import structs

from deployer.errors import ConfigError, NotFoundError, TargetError
from deployer.inuse import model_of
from deployer.observed import Document, Reference
from deployer.properties import INFERENCE_PORT, METRICS_PORT
from deployer.targets.kserve.client.port_forward import Forward
from deployer.targets.kserve.client.resources import POD, Resource
from deployer.targets.kserve.state.children import (
    Children,
    is_standard,
    is_terminating,
    own_children,
    release_of,
    selector,
)
from deployer.targets.kserve.state.kinds import REVISION
from deployer.targets.kserve.state.pods import is_ready
from deployer.targets.kserve.state.revisions import find_url
from deployer.targets.kserve.target.ingress import find_ingress
from deployer.targets.kserve.target.logs import follow_logs, read_logs
from deployer.targets.kserve.target.session import Session
from deployer.targets.log_lines import WHOLE, Part
from deployer.targets.protocols import Endpoint, Via


class Reach:
    """Reaches the services of one cluster."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def endpoint(
        self, reference: Reference, via: Via = Via.INGRESS, *, release: str | None = None
    ) -> Endpoint:
        """Return the address of the ingress, or of a pod through the API server.

        In Knative mode the ingress reaches one release by the URL of its tag. In Standard mode this returns
        a ready pod of the release. Raises NotFoundError, TargetError, and ConfigError for TorchServe's own
        ports without a release.
        """
        if via is Via.MANAGEMENT or (via is Via.DIRECT and release is None):
            what = "cannot reach TorchServe's own ports on a cluster"
            raise ConfigError(what, where=str(reference), hint="Use the ingress, or name a release.")
        service = self._session.get(reference)
        if via is Via.METRICS:
            return self._pod(service, release, METRICS_PORT)
        if via is Via.DIRECT or (release and is_standard(service)):
            return self._pod(service, release, INFERENCE_PORT)
        url = service.get("status", {}).get("url")
        if release:
            url = find_url(service, self._list(REVISION, service), release)
            if url is None:
                what = f"release {release} has no URL: it gets no traffic, or its traffic has no tag"
                hint = "Run `kdeploy status` to see the traffic."
                raise NotFoundError(what, where=str(reference), hint=hint)
        if not url:
            hint = "Run `kdeploy status` to see why."
            raise TargetError("the service has no URL yet", where=str(reference), hint=hint)
        found = find_ingress(self._session.api, service, url, self._session.config.ingress)
        return structs.replace(found, model=model_of(service))

    def logs(
        self, reference: Reference, *, follow: bool = False, previous: bool = False, part: Part = WHOLE
    ) -> Iterator[str]:
        """Yield the log lines of every container of every pod of the service. Raises NotFoundError."""
        service, api = self._session.get(reference), self._session.api
        if follow:
            return follow_logs(api, reference, part)
        return read_logs(api, self._list(POD, service), previous=previous, part=part)

    def _pod(self, service: Document, release: str | None, port: int) -> Endpoint:
        """Return the address of a ready pod, of one release or of any."""
        children = own_children(service, Children(pods=self._list(POD, service)))
        for pod in children.pods:
            if is_ready(pod) and not is_terminating(pod) and release in (None, release_of(pod)):
                metadata = pod["metadata"]
                tunnel = Forward(self._session.connection, metadata["namespace"], metadata["name"], port)
                url = f"http://{metadata['name']}:{port}"
                return Endpoint(url=url, tunnel=tunnel, model=model_of(service))
        what = f"no pod of release {release} is ready" if release else "no pod is ready"
        where = f"{service['metadata']['namespace']}/{service['metadata']['name']}"
        raise NotFoundError(what, where=where, hint="Run `kdeploy status` to see what is running.")

    def _list(self, resource: Resource, service: Document) -> list[Document]:
        metadata = service["metadata"]
        return self._session.api.list(resource, metadata["namespace"], selector(metadata["name"]))[0]
