"""Finds how to reach a service from outside: the ingress's address, or a port-forward to one of its pods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from typing import Any
from urllib.parse import SplitResult, urlsplit

from deployer.config import PORT_FORWARD
from deployer.errors import RefusedError, TargetError
from deployer.observed import Document
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.port_forward import Forward
from deployer.targets.kserve.client.resources import GATEWAY, NODE, POD, SERVICE, Resource
from deployer.targets.kserve.preflight.capabilities import find_gateway
from deployer.targets.kserve.state.children import deployment_name, is_standard, is_terminating
from deployer.targets.kserve.state.pods import is_ready
from deployer.targets.protocols import Endpoint

_ISTIO, _KOURIER, _KNATIVE = "istio-system", "kourier-system", "knative-serving"
_OUTSIDE = (
    (_ISTIO, "istio-ingressgateway"),
    (_KOURIER, "kourier"),
    (_KNATIVE, "kourier"),
    ("ingress-nginx", "ingress-nginx-controller"),
)
_INSIDE = (  # for cluster-local services
    (_ISTIO, "knative-local-gateway"),
    (_KOURIER, "kourier-internal"),
    (_KNATIVE, "kourier-internal"),
)
_PORT_NAMES = {"http": ("http2", "http", "http80"), "https": ("https",)}
_PORTS = {"http": 80, "https": 443}


def find_ingress(api: Api, service: Document, url: str, named: str | None) -> Endpoint:
    """Return the endpoint for a URL of a service, on the ingress that is `named` or on the one found.

    If the ingress has no address outside the cluster, or `named` is PORT_FORWARD, the API server forwards to
    one of its pods. The URL's path prefix is kept, and its host is the Host header; on the address that was
    found, TLS verifies that host. Raises TargetError.
    """
    namespace = service["metadata"]["namespace"]
    search = _Search(api, urlsplit(url), f"{namespace}/{service['metadata']['name']}")
    address = search.address() if named is None else named
    if address and address != PORT_FORWARD:
        return Endpoint(
            url=address.rstrip("/") + search.wanted.path.rstrip("/"),
            host=search.wanted.netloc,
            server_name=search.wanted.hostname if named is None and search.wanted.scheme == "https" else None,
        )
    return search.forward((namespace, deployment_name(service)) if is_standard(service) else None)


class _Search:
    """Searches a cluster for the ingress of a URL, and remembers what this user cannot read."""

    def __init__(self, api: Api, wanted: SplitResult, where: str) -> None:
        self._api, self.wanted, self._where = api, wanted, where
        self._inside = _is_inside(wanted.hostname or "")
        self._refused: list[RefusedError] = []

    def address(self) -> str | None:
        """Return the first address that reaches the ingress from outside."""
        if self._inside:
            return None
        return next(chain(self._gateway_addresses(), self._service_addresses()), None)

    def forward(self, own: tuple[str, str] | None) -> Endpoint:
        """Return the endpoint of a pod of the ingress, through the API server.

        If the ingress has no pod, use the predictor's `own` Service, given as (namespace, name).
        """
        found = [*self._gateway_services, *self._services(_INSIDE if self._inside else _OUTSIDE)]
        if own:
            found += self._services([own])
        for service in found:
            port = _port(service, self.wanted.scheme)
            pod = self._pod(service) if port else None
            if port and pod:
                place = pod["metadata"]["namespace"], pod["metadata"]["name"]
                tunnel = Forward(self._api.connection, *place, _target(port, pod))
                url = f"{self.wanted.scheme}://{self.wanted.netloc}{self.wanted.path.rstrip('/')}"
                return Endpoint(url=url, host=self.wanted.netloc, tunnel=tunnel)
        raise self._not_found(found)

    def _not_found(self, found: list[Document]) -> TargetError:
        hint = "name it with --ingress http://ADDRESS or KDEPLOY_INGRESS."
        if self._refused:
            return RefusedError(
                f"cannot find the ingress: {self._refused[0].what}",
                where=self._where,
                hint=f"Ask a cluster administrator for the address of the ingress, and {hint}",
            )
        names = ", ".join(f"{one['metadata']['namespace']}/{one['metadata']['name']}" for one in found)
        if names:
            what = f"no pod of Service {names} is ready for {self.wanted.scheme}"
        else:
            what = "no ingress found on this cluster: neither an address nor a pod to forward to"
        return TargetError(what, where=self._where, hint=f"If the cluster has an ingress, {hint}")

    @cached_property
    def _gateway(self) -> tuple[str, str] | None:
        """The (namespace, name) of the Gateway that KServe uses, if it uses one."""
        namespace, _, name = (find_gateway(self._api) or "").partition("/")
        return (namespace, name) if namespace else None

    @cached_property
    def _gateway_services(self) -> list[Document]:
        """The Services that Istio or Envoy Gateway created for the Gateway."""
        if not self._gateway:
            return []
        namespace, name = self._gateway
        envoy = "gateway.envoyproxy.io/owning-gateway-"
        owned = {f"{envoy}namespace": namespace, f"{envoy}name": name}
        return [
            *self._list(SERVICE, namespace, {"gateway.networking.k8s.io/gateway-name": name}),
            *self._list(SERVICE, "envoy-gateway-system", owned),
        ]

    def _gateway_addresses(self) -> Iterator[str]:
        if not self._gateway:
            return
        found = self._read(GATEWAY, *self._gateway) or {}
        addresses = [str(one["value"]) for one in found.get("status", {}).get("addresses", [])]
        inside = {one["spec"].get("clusterIP") for one in self._gateway_services} if addresses else set()
        for address in addresses:
            if address not in inside and not _is_inside(address):
                yield f"{self.wanted.scheme}://{_host(address)}"

    def _service_addresses(self) -> Iterator[str]:
        scheme = self.wanted.scheme
        for service in self._services(_OUTSIDE):
            port = _port(service, scheme)
            if not port:
                continue
            for entry in service.get("status", {}).get("loadBalancer", {}).get("ingress", []):
                yield f"{scheme}://{_host(entry.get('ip') or entry['hostname'])}:{port['port']}"
            if port.get("nodePort"):
                yield from (f"{scheme}://{_host(address)}:{port['nodePort']}" for address in self._nodes())

    def _services(self, names: Iterable[tuple[str, str]]) -> Iterator[Document]:
        found = (self._read(SERVICE, namespace, name) for namespace, name in names)
        return (service for service in found if service)

    def _nodes(self) -> Iterator[str]:
        for kind in ("ExternalIP", "InternalIP"):
            for node in self._list(NODE, None, {}):
                addresses = node.get("status", {}).get("addresses", [])
                yield from (one["address"] for one in addresses if one["type"] == kind)

    def _pod(self, service: Document) -> Document | None:
        """Return a ready pod that the Service selects."""
        selector = service["spec"].get("selector")
        pods = self._list(POD, service["metadata"]["namespace"], selector) if selector else []
        return next((pod for pod in pods if is_ready(pod) and not is_terminating(pod)), None)

    def _read(self, resource: Resource, namespace: str, name: str) -> Document | None:
        try:
            return self._api.get(resource, namespace, name)
        except RefusedError as error:
            self._refused.append(error)
            return None

    def _list(self, resource: Resource, namespace: str | None, labels: Mapping[str, str]) -> list[Document]:
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        try:
            return self._api.list(resource, namespace, {"labelSelector": selector} if selector else None)[0]
        except RefusedError as error:
            self._refused.append(error)
            return []


def _port(service: Document, scheme: str) -> dict[str, Any] | None:
    ports: list[dict[str, Any]] = service["spec"].get("ports", [])
    fits = (p for p in ports if p.get("name") in _PORT_NAMES[scheme] or p["port"] == _PORTS[scheme])
    return next(fits, None)


def _target(port: dict[str, Any], pod: Document) -> int:
    """Return the pod's port for a Service's port, which can name it."""
    wanted = port.get("targetPort", port["port"])
    named = {
        one.get("name"): one["containerPort"]
        for container in pod["spec"]["containers"]
        for one in container.get("ports", [])
    }
    return int(named.get(wanted, port["port"] if isinstance(wanted, str) else wanted))


def _is_inside(host: str) -> bool:
    """Return whether a host name resolves only inside the cluster."""
    return ".svc." in f"{host}."


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
