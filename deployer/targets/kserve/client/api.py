"""A small client of the Kubernetes API: plain documents in and out, our errors, a bounded number of attempts.

Every request is safe to repeat, and is repeated when the network or the API server fails for a moment. A
write whose last attempt got no answer may have taken effect, and its error says so.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from typing import Any

import urllib3

from deployer.errors import KdeployError, NotFoundError
from deployer.managed_fields import FIELD_MANAGER
from deployer.observed import Document
from deployer.patience import Patience
from deployer.targets.kserve.client import api_errors
from deployer.targets.kserve.client.connection import Connection
from deployer.targets.kserve.client.http import (
    JSON,
    Request,
    open_stream,
    read_event,
    read_lines,
    send,
)
from deployer.targets.kserve.client.port_forward import Forward
from deployer.targets.kserve.client.resources import Resource

PAGE = 1000  # objects in one answer of a list

_WATCH_SECONDS = "60"  # a watch is renewed after this, so that a dead one is found out
_NO_LOG = (400, 404, 500)  # the container did not start; there is no such Pod; its node does not answer
_TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
_APPLY = "application/apply-patch+yaml"  # JSON is YAML
_MERGE = "application/merge-patch+json"
_REVIEWS = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "", namespaced=False)


class Api:
    """One cluster's API, used as the connection's user; a list comes in pages of `page` objects."""

    def __init__(self, connection: Connection, *, page: int = PAGE) -> None:
        self.connection = connection
        self._page = page

    @property
    def where(self) -> str:
        """The cluster's address, and the context that it was found by."""
        return self.connection.where

    @property
    def patience(self) -> Patience:
        """The clock, and how long this cluster is waited for."""
        return self.connection.patience

    def get(self, resource: Resource, namespace: str | None, name: str) -> Document | None:
        """Return an object, or None where there is none; TargetError where the kind is unknown."""
        try:
            return self._ask("GET", resource, namespace, name)
        except NotFoundError:
            return None

    def list(
        self, resource: Resource, namespace: str | None, selector: Mapping[str, str] | None = None
    ) -> tuple[list[Document], str]:
        """Return the objects that a selector matches, and the version to watch them from."""
        found: list[Document] = []
        query = {"limit": str(self._page), **(selector or {})}
        while True:
            try:
                page = self._ask("GET", resource, namespace, query=query)
            except api_errors.GoneError:  # the list was too slow for its pages: again, in one piece
                if "limit" not in query:
                    raise
                found.clear()
                query = dict(selector or {})
                continue
            items, metadata = page.get("items") or [], page.get("metadata") or {}
            found += ({"apiVersion": resource.api_version, "kind": resource.kind, **one} for one in items)
            token = metadata.get("continue")
            if not token:
                return found, metadata.get("resourceVersion", "")
            query = {**query, "continue": token}

    def table(
        self, resource: Resource, namespace: str | None, selector: Mapping[str, str] | None = None
    ) -> builtins.list[Document]:
        """Return the metadata of objects, and under `cells` the columns that `kubectl get` shows of them.

        A list of whole objects is many times larger: each may hold a pod template.
        """
        page = self._ask("GET", resource, namespace, query=selector, accept=_TABLE)
        names = [one["name"] for one in page.get("columnDefinitions") or []]
        rows = page.get("rows") or []
        return [{**row["object"], "cells": dict(zip(names, row["cells"], strict=True))} for row in rows]

    def apply(
        self, resource: Resource, document: Document, *, force: bool = False, dry_run: bool = False
    ) -> Document:
        """Apply a document server-side: own its fields and no others. Raises ConflictError."""
        metadata = document["metadata"]
        query = {"force": str(force).lower(), **({"dryRun": "All"} if dry_run else {})}
        return self._write(
            "PATCH", resource, metadata.get("namespace"), metadata["name"], document, query, _APPLY
        )

    def create(self, resource: Resource, document: Document) -> Document:
        """Create an object; ConflictError where one exists, also one by an earlier attempt of this."""
        return self._write("POST", resource, document["metadata"]["namespace"], None, document)

    def merge(self, resource: Resource, namespace: str, name: str, change: Document) -> Document:
        """Merge a change into an object; ConflictError where it names a resourceVersion that is old."""
        return self._write("PATCH", resource, namespace, name, change, content_type=_MERGE)

    def delete(self, resource: Resource, namespace: str | None, name: str) -> bool:
        """Delete an object, and in the background what it owns. False where there was none."""
        try:
            self._ask("DELETE", resource, namespace, name, {"propagationPolicy": "Background"})
        except NotFoundError:
            return False
        return True

    def allowed(self, verb: str, resource: Resource, namespace: str | None) -> bool:
        """Return whether this user may do something, as the API server's authorizers say."""
        plural, _, subresource = resource.plural.partition("/")
        attributes = {"verb": verb, "group": resource.group, "resource": plural, "namespace": namespace}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**attributes, "subresource": subresource}},
        }
        answer = self._ask("POST", _REVIEWS, None, body=review)
        return bool((answer.get("status") or {}).get("allowed"))

    def open_watch(
        self, resource: Resource, namespace: str | None, version: str, selector: Mapping[str, str]
    ) -> urllib3.BaseHTTPResponse:
        """Open a watch from a version on; `read_watch` reads it, `shutdown()` ends it from elsewhere."""
        options = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": _WATCH_SECONDS}
        request = Request(
            asked=f"watch {resource.full_name}",
            path=resource.path(namespace),
            query={**options, "resourceVersion": version, **selector},
        )
        return open_stream(self.connection, request, silence=self.patience.watch)

    def read_watch(self, response: urllib3.BaseHTTPResponse) -> Iterator[tuple[str, Document]]:
        """Yield (type, object) until the API server closes the watch. Raises GoneError, TargetError."""
        with response:
            for line in read_lines(self.connection, response):
                yield read_event(self.connection, line)

    def open_log(
        self, namespace: str, pod: str, container: str, options: Mapping[str, str]
    ) -> urllib3.BaseHTTPResponse:
        """Open a container's log, each line with its time; `read_log` reads it.

        Raises NoLogError where the container has none, TargetError for the network and the API server.
        """
        request = Request(
            asked=f"get pods/log {namespace}/{pod}",
            path=f"/api/v1/namespaces/{namespace}/pods/{pod}/log",
            query={"container": container, "timestamps": "true", **options},
        )
        silence = None if "follow" in options else self.patience.answer
        return self.patience.again(
            lambda: open_stream(self.connection, request, silence=silence, no_log=_NO_LOG),
            api_errors.PassingError,
        )

    def read_log(self, response: urllib3.BaseHTTPResponse) -> Iterator[str]:
        """Yield the lines of a log to its end. Raises PassingError where it breaks off."""
        with response:
            for line in read_lines(self.connection, response):
                yield line.decode(errors="replace")

    def forward(self, namespace: str, pod: str, port: int) -> Forward:
        """Return the way to a port of a pod; nothing is sent before it is used."""
        return Forward(self.connection, namespace, pod, port)

    def kinds(self, resource: Resource) -> frozenset[str]:
        """Return the plurals that the cluster knows in a resource's group and version."""
        path = f"/apis/{resource.group}/{resource.version}"
        try:
            found = self._send(Request(asked=f"get {path}", path=path))
        except (NotFoundError, api_errors.UnknownKindError):
            return frozenset()
        return frozenset(one["name"] for one in found.get("resources") or [])

    def version(self) -> str:
        """Return the API server's version, such as v1.31.2."""
        found = self._send(Request(asked="get /version", path="/version"))
        return str(found.get("gitVersion") or "of an unknown version")

    def _write(
        self,
        method: str,
        resource: Resource,
        namespace: str | None,
        name: str | None,
        body: Document,
        query: Mapping[str, str] | None = None,
        content_type: str = JSON,
    ) -> Document:
        query = {"fieldManager": FIELD_MANAGER, **(query or {})}
        return self._ask(method, resource, namespace, name, query, body=body, content_type=content_type)

    def _ask(
        self,
        method: str,
        resource: Resource,
        namespace: str | None,
        name: str | None = None,
        query: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Document:
        verb = _VERBS[method] if name or method == "POST" else "list"
        place = "/".join(word for word in (namespace, name) if word)
        return self._send(
            Request(
                asked=f"{verb} {resource.full_name} {place}".rstrip(),
                path=resource.path(namespace, name),
                method=method,
                query=query or {},
                **more,
            )
        )

    def _send(self, request: Request) -> Document:
        """Send a request until it is answered or refused, or the attempts are used up."""
        in_doubt = False

        def attempt() -> Document:
            nonlocal in_doubt
            try:
                return send(self.connection, request)
            except api_errors.PassingError as error:
                in_doubt = in_doubt or error.done
                raise
            except NotFoundError:
                if request.method == "DELETE" and in_doubt:
                    return {}  # an attempt before did it, and only its answer was lost
                raise

        again: tuple[type[KdeployError], ...] = (api_errors.PassingError, api_errors.OutdatedError)
        if "resourceVersion" in (request.body or {}).get("metadata", {}):
            again = again[:1]  # the version that it is for stays outdated
        try:
            return self.patience.again(attempt, *again)
        except KdeployError as error:
            changes = request.method != "GET" and not request.path.endswith(_REVIEWS.plural)
            if in_doubt and changes and "dryRun" not in request.query:
                raise api_errors.doubted(error) from error
            raise


_VERBS = {"GET": "get", "PATCH": "patch", "POST": "create", "DELETE": "delete"}
