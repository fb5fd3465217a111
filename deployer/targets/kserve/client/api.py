"""A small client of the Kubernetes API: plain documents in and out, our errors, a bounded number of attempts.

Every request is safe to repeat, and is repeated if the network or the API server fails temporarily. If the
last attempt of a write got no answer, its error says that the write might have taken effect.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import urllib3

from deployer.errors import ConflictError, KdeployError, NotFoundError
from deployer.managed_fields import FIELD_MANAGER
from deployer.observed import Document
from deployer.targets.kserve.client.api_errors import (
    GoneError,
    OutdatedError,
    PassingError,
    UnknownKindError,
    UntouchedError,
    read_refusal,
    unreachable,
)
from deployer.targets.kserve.client.connection import Connection, Request
from deployer.targets.kserve.client.resources import Resource

PAGE = 1000  # objects in one answer of a list

_GONE_PERIOD = 0.2  # seconds between two reads of an object that is being deleted
_WATCH_SECONDS = "60"  # a watch is renewed after this time, so that a dead one is noticed
_NO_LOG = (400, 404, 500)  # the container did not start; the pod does not exist; its node does not answer
_TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
_APPLY = "application/apply-patch+yaml"  # JSON is YAML
_MERGE = "application/merge-patch+json"
_OURS = {"fieldManager": FIELD_MANAGER}
_VERBS = {"GET": "get", "PATCH": "patch", "POST": "create", "DELETE": "delete"}
_REVIEWS = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "", namespaced=False)

OwnersChange = Callable[[list[Document]], list[Document]]


class Api:
    """One cluster's API, as the connection's user. A list is read in pages of `page` objects."""

    def __init__(self, connection: Connection, *, page: int = PAGE) -> None:
        self.connection, self.where, self.patience = connection, connection.where, connection.patience
        self._page = page

    def get(self, resource: Resource, namespace: str | None, name: str) -> Document | None:
        """Return an object, or None if it does not exist. Raises UnknownKindError for an unknown kind."""
        try:
            return self._ask("GET", resource, namespace, name)
        except NotFoundError:
            return None

    def list(
        self, resource: Resource, namespace: str | None, selector: Mapping[str, str] | None = None
    ) -> tuple[list[Document], str]:
        """Return the objects that a selector matches, and the version from which to watch them."""
        found: list[Document] = []
        query = {"limit": str(self._page), **(selector or {})}
        while True:
            try:
                page = self._ask("GET", resource, namespace, query=query)
            except GoneError:  # the version expired between two pages: read the list in one piece
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
        """Return the metadata of objects, with the columns that `kubectl get` prints under `cells`.

        A list of whole objects is many times larger, because each of them can hold a pod template.
        """
        page = self._ask("GET", resource, namespace, query=selector, accept=_TABLE)
        names = [one["name"] for one in page.get("columnDefinitions") or []]
        rows = page.get("rows") or []
        return [{**row["object"], "cells": dict(zip(names, row["cells"], strict=True))} for row in rows]

    def apply(
        self, resource: Resource, document: Document, *, force: bool = False, dry_run: bool = False
    ) -> Document:
        """Apply a document server-side, which owns the document's fields and no others.

        If the object is being deleted, wait until it is gone and apply the document again. Raises
        ConflictError if that takes too long, or if another manager holds a field and `force` is off.
        """
        # Strict: a new API server would drop a field that is not in its schema, and only warn.
        query = {**_OURS, "force": str(force).lower(), "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        place = _place(document)
        applied = self._ask("PATCH", resource, *place, query, body=document, content_type=_APPLY)
        if dry_run or "deletionTimestamp" not in applied["metadata"]:
            return applied
        self.wait_until_gone(resource, applied)
        return self._ask("PATCH", resource, *place, query, body=document, content_type=_APPLY)

    def create(self, resource: Resource, document: Document) -> Document:
        """Create an object. Raises ExistsError if it exists, even if an earlier attempt created it."""
        return self._ask("POST", resource, document["metadata"]["namespace"], None, _OURS, body=document)

    def merge(self, resource: Resource, document: Document, metadata: Document) -> Document:
        """Merge a change into an object's metadata.

        Raises NotFoundError, and OutdatedError if the change names an older resourceVersion.
        """
        body = {"metadata": metadata}
        return self._ask("PATCH", resource, *_place(document), _OURS, body=body, content_type=_MERGE)

    def change_owners(self, resource: Resource, document: Document, change: OwnersChange) -> Document:
        """Change an object's owners, if that changes anything, and return the object. Raises NotFoundError.

        The API server treats the list as one field. So this reads it again and writes it whole if another
        client changed the object at the same time.
        """

        def attempt() -> Document:
            nonlocal document
            held = document["metadata"].get("ownerReferences", [])
            owners = change(held)
            if owners == held:
                return document
            wanted = {
                "resourceVersion": document["metadata"]["resourceVersion"],
                "ownerReferences": owners,
            }
            try:
                return self.merge(resource, document, wanted)
            except ConflictError:
                document = self.get(resource, *_place(document)) or document
                raise

        return self.patience.again(attempt, ConflictError)

    def delete(self, resource: Resource, namespace: str | None, name: str) -> bool:
        """Delete an object, and in the background what it owns. Return False if it does not exist."""
        try:
            self._ask("DELETE", resource, namespace, name, {"propagationPolicy": "Background"})
        except NotFoundError:
            return False
        return True

    def wait_until_gone(self, resource: Resource, document: Document) -> None:
        """Wait until an object that is being deleted is gone. Raises ConflictError, naming its finalizers."""
        if not self.is_gone_in_time(resource, document):
            namespace, name = _place(document)
            finalizers = ", ".join(document["metadata"].get("finalizers", [])) or "none"
            raise ConflictError(
                f"{resource.kind} {name} is still being deleted after {self.patience.gone:g} s: "
                f"its finalizers are {finalizers}",
                where=f"namespace {namespace}",
                hint="Remove the finalizer, or wait for its controller. Then run the command again.",
            )

    def is_gone_in_time(self, resource: Resource, document: Document) -> bool:
        """Wait until an object is deleted or replaced; return False if that takes too long."""
        clock = self.patience.clock
        end = clock.now() + self.patience.gone
        while found := self.get(resource, *_place(document)):
            if found["metadata"]["uid"] != document["metadata"]["uid"]:
                break
            if clock.now() > end:
                return False
            clock.sleep(_GONE_PERIOD)
        return True

    def allowed(self, verb: str, resource: Resource, namespace: str | None) -> bool:
        """Return whether the API server's authorizers allow this user a verb on a resource."""
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
        """Open a watch that starts at a version; `shutdown()` of the response ends it from another thread."""
        options = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": _WATCH_SECONDS}
        request = Request(
            asked=f"watch {resource.full_name}",
            path=resource.path(namespace),
            query={**options, "resourceVersion": version, **selector},
        )
        return self.connection.open_stream(request, silence=self.patience.watch)

    def read_watch(self, response: urllib3.BaseHTTPResponse) -> Iterator[tuple[str, Document]]:
        """Yield (type, object) until the API server closes the watch. Raises GoneError, TargetError."""
        with response:
            for line in self.connection.read_lines(response):
                yield _read_event(line, self.where)

    def open_log(
        self, namespace: str, pod: str, container: str, options: Mapping[str, str]
    ) -> urllib3.BaseHTTPResponse:
        """Open a container's log, in which each line starts with its time.

        Raises NoLogError if the container has none, TargetError for the network and the API server.
        """
        request = Request(
            asked=f"get pods/log {namespace}/{pod}",
            path=f"/api/v1/namespaces/{namespace}/pods/{pod}/log",
            query={"container": container, "timestamps": "true", **options},
        )
        silence = None if "follow" in options else self.patience.answer
        return self.patience.again(
            lambda: self.connection.open_stream(request, silence=silence, no_log=_NO_LOG), PassingError
        )

    def read_log(self, response: urllib3.BaseHTTPResponse) -> Iterator[str]:
        """Yield the lines of a log until it ends. Raises PassingError if it breaks off."""
        with response:
            for line in self.connection.read_lines(response):
                yield line.decode(errors="replace")

    def kinds(self, resource: Resource) -> frozenset[str]:
        """Return the plurals of the kinds that the cluster has in a resource's group and version."""
        path = f"/apis/{resource.group}/{resource.version}"
        try:
            found = self._send(Request(asked=f"get {path}", path=path))
        except (NotFoundError, UnknownKindError):
            return frozenset()
        return frozenset(one["name"] for one in found.get("resources") or [])

    def version(self) -> str:
        """Return the API server's version, such as v1.31.2."""
        found = self._send(Request(asked="get /version", path="/version"))
        return str(found.get("gitVersion") or "of an unknown version")

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
        asked, path = f"{verb} {resource.full_name} {place}".rstrip(), resource.path(namespace, name)
        return self._send(Request(asked=asked, path=path, method=method, query=query or {}, **more))

    def _send(self, request: Request) -> Document:
        """Send a request until it is answered or refused, or until the attempts are used up."""
        in_doubt = False

        def attempt() -> Document:
            nonlocal in_doubt
            try:
                return self.connection.send(request)
            except PassingError as error:
                in_doubt = in_doubt or not isinstance(error, UntouchedError)
                raise
            except NotFoundError:
                if request.method == "DELETE" and in_doubt:
                    return {}  # an earlier attempt deleted it, and its answer was lost
                raise

        again: tuple[type[KdeployError], ...] = (PassingError, OutdatedError)
        if "resourceVersion" in (request.body or {}).get("metadata", {}):
            again = again[:1]  # the version that the request names stays outdated
        try:
            return self.patience.again(attempt, *again)
        except KdeployError as error:
            changes = request.method != "GET" and not request.path.endswith(_REVIEWS.plural)
            if in_doubt and changes and "dryRun" not in request.query:
                what = f"{error.what}; the API server might have made the change"
                raise type(error)(what, where=error.where, hint=error.hint) from error
            raise


def _place(document: Document) -> tuple[str, str]:
    return document["metadata"]["namespace"], document["metadata"]["name"]


def _read_event(line: bytes, where: str) -> tuple[str, Document]:
    """Read a line of a watch: (type, object)."""
    try:
        event = json.loads(line)
        kind, document = str(event["type"]), event["object"]
        if kind != "ERROR":
            document["metadata"]["resourceVersion"]
    except (ValueError, KeyError, TypeError) as error:  # a proxy cut it off, for example
        raise unreachable(ValueError("invalid watch event"), where) from error
    if kind == "ERROR":
        status, body = int(document.get("code") or 500), json.dumps(document).encode()
        raise read_refusal(status, body, f"watch on {where}")
    return kind, document
