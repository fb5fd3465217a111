"""A small client of the Kubernetes API: plain documents in and out, our errors, bounded patience.

What is asked here may be asked twice, so it is asked again when the network or the API server fails for a
moment, after as long as `Retry-After` says if it says so. Where a write has got no answer in the end, the
error says that it may have been done.
"""

from __future__ import annotations

import base64
import builtins
import json
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode

import urllib3

from deployer.errors import KdeployError, NotFoundError
from deployer.managed_fields import FIELD_MANAGER
from deployer.observed import Document
from deployer.targets.kserve.client import api_errors
from deployer.targets.kserve.client.connection import Connection
from deployer.targets.kserve.client.port_forward import Forward
from deployer.targets.kserve.client.resources import Resource

PAGE = 500  # objects in one answer of a list
ATTEMPTS = 5
PATIENCE = 30.0  # seconds: a Retry-After beyond this is for people to wait, not for a command

_WATCH_SECONDS = 60  # a watch is closed and gone on with after this, so that a dead one is found out
_WATCH_SILENCE = _WATCH_SECONDS + 5.0
_NO_LOG = (400, 404, 500)  # it did not start; there is no such Pod; what the API server heard of the node
_JSON = "application/json"
_TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
_APPLY = "application/apply-patch+yaml"  # JSON is YAML
_MERGE = "application/merge-patch+json"
_REVIEWS = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "", namespaced=False)
_Answer = TypeVar("_Answer")


class Api:
    """One cluster's API, asked in the name of the connection's user."""

    def __init__(self, connection: Connection, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._connection = connection
        self._sleep = sleep

    @property
    def where(self) -> str:
        """The cluster's address, and the context that it was found by."""
        return self._connection.where

    def get(self, resource: Resource, namespace: str | None, name: str) -> Document | None:
        """Return an object, or None where there is none; TargetError where the kind is unknown."""
        try:
            found: Document = self._ask("GET", resource, namespace, name)
        except NotFoundError:
            return None
        return found

    def list(
        self, resource: Resource, namespace: str | None, selector: Mapping[str, str] | None = None
    ) -> tuple[list[Document], str]:
        """Return the objects that a selector matches, and the version to watch on from; in pages."""
        found: list[Document] = []
        query = {"limit": str(PAGE), **(selector or {})}
        while True:
            try:
                page = self._ask("GET", resource, namespace, query=query)
            except api_errors.GoneError:  # the rest of a slow list is forgotten: once more, in one piece
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
        self,
        resource: Resource,
        document: Document,
        *,
        force: bool = False,
        dry_run: bool = False,
    ) -> Document:
        """Apply a document server-side: own what it says, and nothing else. Raises ConflictError."""
        metadata = document["metadata"]
        query = {
            "fieldManager": FIELD_MANAGER,
            "force": str(force).lower(),
            **({"dryRun": "All"} if dry_run else {}),
        }
        applied: Document = self._ask(
            "PATCH", resource, metadata.get("namespace"), metadata["name"], query, document, _APPLY
        )
        return applied

    def create(self, resource: Resource, document: Document) -> Document:
        """Create an object; ConflictError where there is one of its name, by an attempt of this, too."""
        query = {"fieldManager": FIELD_MANAGER}
        namespace = document["metadata"]["namespace"]
        created: Document = self._ask("POST", resource, namespace, query=query, body=document)
        return created

    def merge(self, resource: Resource, namespace: str, name: str, change: Document) -> Document:
        """Merge a change into an object; ConflictError where it names a resourceVersion that is old."""
        query = {"fieldManager": FIELD_MANAGER}
        merged: Document = self._ask("PATCH", resource, namespace, name, query, change, _MERGE)
        return merged

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
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(_WATCH_SECONDS),
            **selector,
        }
        return self._open(
            resource.path(namespace), query, f"watch {resource.full_name}", silence=_WATCH_SILENCE
        )

    def read_watch(self, response: urllib3.BaseHTTPResponse) -> Iterator[tuple[str, Document]]:
        """Yield (type, object) until the API server closes the watch. Raises GoneError, TargetError."""
        with response:
            for line in self._lines(response):
                kind, document = _event(line)
                if kind == "":
                    raise api_errors.broken(ValueError("that is no event"), self._connection.where)
                if kind == "ERROR":
                    said = json.dumps(document).encode()
                    raise self._read_refusal(int(document.get("code") or 500), said, "watch")
                yield kind, document

    def open_log(
        self, namespace: str, pod: str, container: str, options: Mapping[str, str]
    ) -> urllib3.BaseHTTPResponse:
        """Open a container's log, each line with its time; `read_log` reads it.

        Raises NoLogError for what is the container's own, TargetError for the network and the API server.
        """
        query = {"container": container, "timestamps": "true", **options}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        asked = f"get pods/log {namespace}/{pod}"
        return self._again(lambda: self._open(path, query, asked, endless="follow" in options, own=_NO_LOG))

    def read_log(self, response: urllib3.BaseHTTPResponse) -> Iterator[str]:
        """Yield the lines of a log to its end. Raises PassingError where it breaks off."""
        with response:
            for line in self._lines(response):
                yield line.decode(errors="replace")

    def forward(self, namespace: str, pod: str, port: int) -> Forward:
        """Return the way to a port of a pod; nothing is asked before it is used."""
        return Forward(self._connection, namespace, pod, port)

    def kinds(self, resource: Resource) -> frozenset[str]:
        """Return the plurals that the cluster knows in a resource's group and version."""
        path = f"/apis/{resource.group}/{resource.version}"
        try:
            found = self._send_again("GET", path, {}, None, _JSON, f"get {path}")
        except (NotFoundError, api_errors.UnknownKindError):
            return frozenset()
        return frozenset(one["name"] for one in found.get("resources") or [])

    def version(self) -> str:
        """Return the API server's version, such as v1.31.2."""
        said = self._send_again("GET", "/version", {}, None, _JSON, "get /version")
        return str(said.get("gitVersion") or "of an unknown version")

    def _ask(
        self,
        method: str,
        resource: Resource,
        namespace: str | None,
        name: str | None = None,
        query: Mapping[str, str] | None = None,
        body: Document | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> Any:
        verb = _VERBS[method] if name or method == "POST" else "list"
        place = "/".join(word for word in (namespace, name) if word)
        asked = f"{verb} {resource.full_name} {place}".rstrip()
        return self._send_again(
            method, resource.path(namespace, name), query or {}, body, content_type, asked, accept
        )

    def _send_again(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Document | None,
        content_type: str,
        asked: str,
        accept: str = _JSON,
    ) -> Document:
        in_doubt = False

        def send() -> Document:
            nonlocal in_doubt
            try:
                return self._send(method, path, query, body, content_type, asked, accept)
            except api_errors.PassingError as error:
                in_doubt = in_doubt or error.done
                raise
            except NotFoundError:
                if method == "DELETE" and in_doubt:
                    return {}  # an attempt before did it, and only its answer was lost
                raise

        try:
            # What names the version that it is for is outdated for ever.
            return self._again(send, outdated="resourceVersion" not in (body or {}).get("metadata", {}))
        except KdeployError as error:
            changes = method != "GET" and "dryRun" not in query and not path.endswith(_REVIEWS.plural)
            if in_doubt and changes:
                raise api_errors.doubted(error) from error
            raise

    def _again(self, ask: Callable[[], _Answer], *, outdated: bool = False) -> _Answer:
        """Ask until it is answered, or refused, or patience is at an end."""
        again = (
            (api_errors.PassingError, api_errors.OutdatedError) if outdated else (api_errors.PassingError,)
        )
        for attempt in range(1, ATTEMPTS):
            try:
                return ask()
            except again as error:
                pause = random.uniform(0.5, 1.0) * 0.2 * 2**attempt  # noqa: S311 - it spreads requests
                if isinstance(error, api_errors.PassingError) and error.after is not None:
                    pause = error.after
                if pause > PATIENCE:
                    raise
            self._sleep(pause)
        return ask()

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Document | None,
        content_type: str,
        asked: str,
        accept: str,
    ) -> Document:
        url = self._connection.host + path + (f"?{urlencode(query)}" if query else "")
        headers = {**self._connection.headers(), "Accept": accept, "Content-Type": content_type}
        data = _encode(body) if body is not None else None
        try:
            response = self._connection.pool.request(method, url, body=data, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            raise api_errors.unreachable(error, f"{asked} on {self._connection.where}") from error
        found = _document(response)
        if found is None:
            raise self._refusal(response, asked, body)
        return found

    def _open(
        self,
        path: str,
        query: Mapping[str, str],
        asked: str,
        *,
        silence: float | None = None,
        endless: bool = False,
        own: Collection[int] = (),
    ) -> urllib3.BaseHTTPResponse:
        """Open an answer to be read as it comes. `silence` is in seconds, else the connection's own.

        Of the statuses in `own` it is what was asked for, and not who was asked, that has no answer.
        """
        url = f"{self._connection.host}{path}?{urlencode(query)}"
        headers = {**self._connection.headers(), "Accept": "*/*"}
        timed = silence or endless
        options: dict[str, Any] = {"timeout": urllib3.Timeout(connect=5.0, read=silence)} if timed else {}
        try:
            response = self._connection.pool.request(
                "GET", url, headers=headers, preload_content=False, **options
            )
            if response.status < 300 and not _is_page(response):
                return response
            refusal = self._refusal(response, asked)
        except urllib3.exceptions.HTTPError as error:
            raise api_errors.unreachable(error, f"{asked} on {self._connection.where}") from error
        if response.status in own:
            raise api_errors.NoLogError(refusal.what, where=refusal.where, hint=refusal.hint) from refusal
        raise refusal

    def _refusal(
        self, response: urllib3.BaseHTTPResponse, asked: str, sent: Document | None = None
    ) -> KdeployError:
        said = _without_values(response.data, sent)
        return self._read_refusal(
            response.status, said, asked, after=_seconds(response.headers.get("Retry-After"))
        )

    def _read_refusal(
        self, status: int, body: bytes, asked: str, *, after: float | None = None
    ) -> KdeployError:
        answer = api_errors.Answer(status, body, asked=asked, host=self._connection.where, after=after)
        return api_errors.read(answer)

    def _lines(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """Yield lines as they come, whole ones: each of a watch is JSON and ends in a line break."""
        rest = b""
        try:
            for chunk in response.stream(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise api_errors.broken(error, self._connection.where) from error
        if rest:
            yield rest


def _without_values(answer: bytes, sent: Document | None) -> bytes:
    """Take a Secret's values out of a refusal that quotes them, as a webhook's may."""
    for value in (sent or {}).get("data", {}).values() if (sent or {}).get("kind") == "Secret" else ():
        plain = base64.b64decode(value)
        for form in (value.encode(), json.dumps(plain.decode(errors="replace"))[1:-1].encode(), plain):
            answer = answer.replace(form, b"***") if form else answer
    return answer


def _encode(body: Document) -> bytes:
    """Encode without blanks, as the API server does: what may never change it compares byte by byte."""
    return json.dumps(body, separators=(",", ":")).encode()


def _document(response: urllib3.BaseHTTPResponse) -> Document | None:
    """Return the object that an answer is, or None where it is a refusal or no answer of an API server."""
    try:
        found = json.loads(response.data) if response.status < 300 else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _is_page(response: urllib3.BaseHTTPResponse) -> bool:
    """Return whether something else answers, with a page for people."""
    return response.headers.get("Content-Type", "").startswith("text/html")


def _event(line: bytes) -> tuple[str, Document]:
    """Read a line of a watch; its type is empty where it is none, cut off by what stands between, say."""
    try:
        event = json.loads(line)
        kind, document = str(event["type"]), event["object"]
        if kind != "ERROR":
            document["metadata"]["resourceVersion"]
    except (ValueError, KeyError, TypeError):
        return "", {}
    return kind, document


_VERBS = {"GET": "get", "PATCH": "patch", "POST": "create", "DELETE": "delete"}


def _seconds(retry_after: str | None) -> float | None:
    """Read what an answer asks to wait; a date is passed over."""
    return float(retry_after) if retry_after and retry_after.isdigit() else None
