"""A live copy of what belongs to one InferenceService, or Pod, kept by watches: no polling.

Each selection of objects is listed once and watched from there by a thread of its own, which goes on
after whatever breaks: a watch that times out, a dropped connection, a version that is forgotten (410).
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Mapping
from types import TracebackType

import urllib3
from msgspec import Struct

from deployer.errors import KdeployError, TargetError
from deployer.target import Document, Reference
from deployer.targets.kserve.api import Api
from deployer.targets.kserve.refusals import GoneError, UnknownKindError
from deployer.targets.kserve.resources import (
    DEPLOYMENT,
    EVENT,
    INFERENCE_SERVICE,
    POD,
    REPLICA_SET,
    REVISION,
    Resource,
)
from deployer.targets.kserve.serving import SERVICE_LABEL, Children

_PATIENCE = 1.0  # seconds that threads get to end; one that a silent API server holds ends with the process
_LOOK_UP = 1.0  # seconds: Python overlooks a Ctrl-C that comes just before it begins to wait
_PAUSE_MAX = 2.0  # seconds between attempts while the API server cannot be reached


class _Listed(Struct):
    resource: Resource
    documents: list[Document]


class _Changed(Struct):
    resource: Resource
    document: Document
    deleted: bool


class _Broken(Struct):
    resource: Resource
    error: KdeployError


class _Opened(Struct):
    resource: Resource


class _Woken(Struct):
    pass


_Message = _Listed | _Changed | _Broken | _Opened | _Woken


def selections(reference: Reference, *, standard: bool) -> dict[Resource, Mapping[str, str]]:
    """Return what is to be watched of a service, and the query that selects it."""
    labelled = {"labelSelector": f"{SERVICE_LABEL}={reference.name}"}
    made = (DEPLOYMENT, REPLICA_SET) if standard else (REVISION,)
    return {
        INFERENCE_SERVICE: {"fieldSelector": f"metadata.name={reference.name}"},
        POD: labelled,
        EVENT: {},
        **dict.fromkeys(made, labelled),
    }


class Watching:
    """The live copy, for as long as the `with` lasts. Its threads hold no lock and end with it."""

    def __init__(self, api: Api, reference: Reference, chosen: Mapping[Resource, Mapping[str, str]]) -> None:
        self._troubles: dict[Resource, KdeployError] = {}
        self._reference = reference
        self._messages: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._known: dict[Resource, dict[str, Document]] = {}
        self._unlisted = set(chosen)
        self._followers = [
            _Follower(api, reference.namespace, resource, query, self._messages)
            for resource, query in chosen.items()
        ]

    def __enter__(self) -> Watching:
        for follower in self._followers:
            follower.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for follower in self._followers:
            follower.stop()
        end = time.monotonic() + _PATIENCE
        for follower in self._followers:
            follower.join(max(end - time.monotonic(), 0.0))

    @property
    def complete(self) -> bool:
        """Whether everything has been seen once; before that, what is missing says nothing."""
        return not self._unlisted

    @property
    def service(self) -> Document | None:
        """The InferenceService, or None once it is deleted."""
        return next(iter(self._known.get(INFERENCE_SERVICE, {}).values()), None)

    @property
    def children(self) -> Children:
        """What belongs to it."""
        pods, events, revisions, deployments, replica_sets = (
            list(self._known.get(resource, {}).values())
            for resource in (POD, EVENT, REVISION, DEPLOYMENT, REPLICA_SET)
        )
        return Children(
            pods=pods, events=events, revisions=revisions, deployments=deployments, replica_sets=replica_sets
        )

    @property
    def trouble(self) -> KdeployError | None:
        """What keeps a part of it from being seen right now."""
        return next(iter(self._troubles.values()), None)

    @property
    def silence(self) -> KdeployError:
        """What has not been seen at all, where `complete` is False."""
        names = sorted(resource.full_name for resource in self._unlisted)
        return TargetError(f"the API server has not listed {', '.join(names)}")

    def wait(self, seconds: float) -> bool:
        """Wait for a change and take in all that there are; False after `seconds` without one.

        Raises TargetError for what asking again does not mend.
        """
        if not self._take_first(time.monotonic() + seconds):
            return False
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(self._messages.get_nowait())
        return True

    def _take_first(self, end: float) -> bool:
        while True:
            left = max(end - time.monotonic(), 0.001)
            with contextlib.suppress(queue.Empty):
                self._take(self._messages.get(timeout=min(left, _LOOK_UP)))
                return True
            if left <= _LOOK_UP:
                return False

    def wake(self) -> None:
        """Let `wait` return, from another thread."""
        self._messages.put(_Woken())

    def _take(self, message: _Message) -> None:
        if isinstance(message, _Woken):
            return
        if isinstance(message, _Broken):
            if not message.error.retryable:
                raise message.error
            self._troubles[message.resource] = message.error
            return
        self._troubles.pop(message.resource, None)
        if isinstance(message, _Listed):
            self._unlisted.discard(message.resource)
            self._known[message.resource] = {_uid(d): d for d in message.documents if self._concerns(d)}
        elif isinstance(message, _Opened):
            return
        elif message.deleted:
            self._known[message.resource].pop(_uid(message.document), None)
        elif self._concerns(message.document):
            self._known[message.resource][_uid(message.document)] = message.document

    def _concerns(self, document: Document) -> bool:
        about = document.get("involvedObject")  # of an Event: everything that is made for NAME is NAME…
        return about is None or str(about.get("name", "")).startswith(self._reference.name)


class _Follower(threading.Thread):
    def __init__(
        self,
        api: Api,
        namespace: str,
        resource: Resource,
        query: Mapping[str, str],
        messages: queue.SimpleQueue[_Message],
    ) -> None:
        super().__init__(name=f"watch {resource.plural}", daemon=True)
        self._api, self._namespace, self._resource, self._query = api, namespace, resource, query
        self._messages = messages
        self._stopping = threading.Event()
        self._response: urllib3.BaseHTTPResponse | None = None
        self._version = ""

    def stop(self) -> None:
        self._stopping.set()
        response = self._response
        if isinstance(response, urllib3.HTTPResponse):
            try:
                response.shutdown()
            except (OSError, ValueError):  # it ended by itself meanwhile
                return

    def run(self) -> None:
        try:
            self._follow()
        except UnknownKindError:  # no Knative, say: then there are none
            self._messages.put(_Listed(self._resource, []))
        except KdeployError as error:
            self._messages.put(_Broken(self._resource, error))

    def _follow(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            pause = self._go_on(pause)

    def _go_on(self, pause: float) -> float:
        """List if need be, and watch until that ends; return the seconds to wait before the next."""
        try:
            if not self._version:
                documents, self._version = self._api.list(self._resource, self._namespace, self._query)
                self._messages.put(_Listed(self._resource, documents))
            self._watch()
        except GoneError:
            self._version = ""
        except TargetError as error:
            if self._stopping.is_set():
                return 0.0
            if not error.retryable:
                raise
            self._messages.put(_Broken(self._resource, error))
        else:
            return 0.0
        return min(max(pause * 2, 0.1), _PAUSE_MAX)

    def _watch(self) -> None:
        """Watch from the version that was seen last until the API server ends it."""
        self._response = self._api.open_watch(self._resource, self._namespace, self._version, self._query)
        try:
            if self._stopping.is_set():
                self._response.close()
                return
            self._messages.put(_Opened(self._resource))
            for kind, document in self._api.read_watch(self._response):
                self._version = document["metadata"]["resourceVersion"]
                if kind != "BOOKMARK":
                    self._messages.put(_Changed(self._resource, document, kind == "DELETED"))
        finally:
            self._response = None


def _uid(document: Document) -> str:
    return str(document["metadata"]["uid"])
