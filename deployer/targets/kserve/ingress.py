"""The way in from outside: the address of the cluster's ingress, and the Host that it routes by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from deployer.errors import TargetError
from deployer.target import Document, Endpoint, Reference
from deployer.targets.kserve.api import Api
from deployer.targets.kserve.capabilities import find_gateway
from deployer.targets.kserve.refusals import RefusedError
from deployer.targets.kserve.resources import GATEWAY, NODE, SERVICE, Resource

_SERVICES = (
    ("istio-system", "istio-ingressgateway"),
    ("kourier-system", "kourier"),
    ("knative-serving", "kourier"),
    ("ingress-nginx", "ingress-nginx-controller"),
)
_PORT_NAMES = {"http": ("http2", "http", "http80"), "https": ("https",)}
_PORTS = {"http": 80, "https": 443}


def find_ingress(api: Api, reference: Reference, service: Document, named: str | None) -> Endpoint:
    """Return where a service is asked from outside: the ingress that is `named`, or one that is found.

    The path prefix of `status.url` is kept, its host is the Host header. Raises TargetError.
    """
    url = service.get("status", {}).get("url")
    if not url:
        raise TargetError(f"{reference} has no URL yet", hint="`kdeploy status` says what it is waiting for")
    wanted = urlsplit(url)
    address = named or _discover(api, wanted.scheme)
    return Endpoint(url=address.rstrip("/") + wanted.path.rstrip("/"), host=wanted.netloc)


def _discover(api: Api, scheme: str) -> str:
    for address in (*_of_gateway(api, scheme), *_of_services(api, scheme)):
        return address
    raise TargetError(
        "no ingress of this cluster has an address that can be found out",
        hint="name it with --ingress http://ADDRESS, or KDEPLOY_INGRESS",
    )


def _of_gateway(api: Api, scheme: str) -> Iterator[str]:
    name = find_gateway(api)
    if not name:
        return
    namespace, _, gateway = name.partition("/")
    found = _read(api, GATEWAY, namespace, gateway)
    for address in (found or {}).get("status", {}).get("addresses", []):
        yield f"{scheme}://{_host(address['value'])}"


def _of_services(api: Api, scheme: str) -> Iterator[str]:
    for namespace, name in _SERVICES:
        service = _read(api, SERVICE, namespace, name)
        port = _port(service, scheme) if service else None
        if not service or not port:
            continue
        for entry in service.get("status", {}).get("loadBalancer", {}).get("ingress", []):
            yield f"{scheme}://{_host(entry.get('ip') or entry['hostname'])}:{port['port']}"
        if port.get("nodePort"):
            yield from (f"{scheme}://{_host(address)}:{port['nodePort']}" for address in _nodes(api))


def _port(service: Document, scheme: str) -> dict[str, Any] | None:
    ports: list[dict[str, Any]] = service["spec"].get("ports", [])
    fits = (p for p in ports if p.get("name") in _PORT_NAMES[scheme] or p["port"] == _PORTS[scheme])
    return next(fits, None)


def _nodes(api: Api) -> Iterator[str]:
    try:
        nodes, _ = api.list(NODE, None)
    except RefusedError:
        return
    for kind in ("ExternalIP", "InternalIP"):
        for node in nodes:
            addresses = node.get("status", {}).get("addresses", [])
            yield from (one["address"] for one in addresses if one["type"] == kind)


def _read(api: Api, resource: Resource, namespace: str, name: str) -> Document | None:
    try:
        return api.get(resource, namespace, name)
    except RefusedError:
        return None


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
