"""Keeps a copy of the objects that queries select up to date, by watches and not by polling.

A thread for each selection lists its objects once and watches them from there. It resumes after a watch that
times out, a dropped connection and a version that the API server has dropped (410).
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Mapping

import urllib3
from msgspec import Struct

from deployer.errors import KdeployError, TargetError
from deployer.observed import Document
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.api_errors import GoneError, UnknownKindError
from deployer.targets.kserve.client.resources import EVENT, Resource

EVENTS_MAX = 16  # objects whose events are watched; the pods of a failing release fail alike

_PARTING = 1.0  # seconds for threads to end; one that waits for the API server ends with the process
_LOOK_UP = 1.0  # seconds: Python misses a Ctrl-C that arrives just before it starts to wait


class _Selection(Struct, frozen=True):
    """The objects of one watch: their kind, and the query that selects them."""

    resource: Resource
    query: tuple[tuple[str, str], ...]


_Change = KdeployError | list[Document] | tuple[Document, bool] | None  # from a thread to the one that waits


class Watching:
    """The copy, as long as the `with` lasts. Its threads hold no lock and end with it.

    `followed` names objects after every change, and the events about them are part of the copy. They are
    selected by each object's uid, because a shared namespace can hold thousands of other events.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        chosen: Mapping[Resource, Mapping[str, str]],
        *,
        followed: Callable[[Watching], Iterable[Document]] | None = None,
    ) -> None:
        self._api, self._namespace, self._followed = api, namespace, followed
        self._clock = api.patience.clock
        self._troubles: dict[_Selection, KdeployError] = {}
        self._changes: queue.SimpleQueue[tuple[_Selection | None, _Change]] = queue.SimpleQueue()
        self._known: dict[_Selection, dict[str, Document]] = {}
        self._followers: dict[_Selection, _Follower] = {}
        for resource, query in chosen.items():
            self._add(_Selection(resource, tuple(query.items())))
        self._unlisted = set(self._followers)

    def _add(self, source: _Selection) -> _Follower:
        self._followers[source] = _Follower(self._api, self._namespace, source, self)
        return self._followers[source]

    def __enter__(self) -> Watching:
        for follower in self._followers.values():
            follower.start()
        return self

    def __exit__(self, *error: object) -> None:
        for follower in self._followers.values():
            follower.stop()
        end = self._clock.now() + _PARTING
        # The garbage collector can close the watch in one of these threads.
        for follower in set(self._followers.values()) - {threading.current_thread()}:
            follower.join(max(end - self._clock.now(), 0.0))

    @property
    def complete(self) -> bool:
        """Whether every selection has been listed; until then, a missing object means nothing."""
        return not self._unlisted

    def of(self, resource: Resource) -> list[Document]:
        """Return the objects of one kind as they are now."""
        known = (documents for source, documents in self._known.items() if source.resource == resource)
        return [document for documents in known for document in documents.values()]

    @property
    def trouble(self) -> KdeployError | None:
        """The error that keeps a selection from being observed right now."""
        return next(iter(self._troubles.values()), None)

    @property
    def silence(self) -> KdeployError:
        """The error that names the selections not listed so far."""
        names = sorted(source.resource.full_name for source in self._unlisted)
        return TargetError(f"the API server has not listed {', '.join(names)}")

    def wait(self, seconds: float) -> bool:
        """Wait for a change and apply every change received; return False after `seconds` without one.

        Raises TargetError for a failure that a retry does not fix.
        """
        if not self._apply_first(self._clock.now() + seconds):
            return False
        with contextlib.suppress(queue.Empty):
            while True:
                self._apply(*self._changes.get_nowait())
        for document in self._followed(self) if self._followed else ():
            source = _Selection(EVENT, (("fieldSelector", f"involvedObject.uid={_uid(document)}"),))
            followed = sum(one.resource == EVENT for one in self._followers)
            if source not in self._followers and followed < EVENTS_MAX:
                self._add(source).start()
        return True

    def _apply_first(self, end: float) -> bool:
        while True:
            left = max(end - self._clock.now(), 0.001)
            with contextlib.suppress(queue.Empty):
                self._apply(*self._changes.get(timeout=min(left, _LOOK_UP)))
                return True
            if left <= _LOOK_UP:
                return False

    def post(self, source: _Selection | None = None, change: _Change = None) -> None:
        """Send a change of a selection to `wait`, which applies it and returns; for other threads.

        The change is an error, all objects of the selection, one object with whether it was deleted, or None
        if its watch is open. Without a selection, `wait` only returns.
        """
        self._changes.put((source, change))

    def _apply(self, source: _Selection | None, change: _Change) -> None:
        """Apply a change. Raises an error that a retry does not fix."""
        if source is None:
            return
        if isinstance(change, KdeployError):
            if not change.retryable:
                raise change
            self._troubles[source] = change
            return
        self._troubles.pop(source, None)
        if isinstance(change, list):
            self._unlisted.discard(source)
            self._known[source] = {_uid(one): one for one in change}
        elif change:
            document, deleted = change
            self._known[source][_uid(document)] = document
            if deleted:
                del self._known[source][_uid(document)]


class _Follower(threading.Thread):
    """The thread of one selection."""

    def __init__(self, api: Api, namespace: str, source: _Selection, watching: Watching) -> None:
        super().__init__(name=f"watch {source.resource.plural}", daemon=True)
        self._api, self._namespace, self._source, self._watching = api, namespace, source, watching
        self._resource, self._query = source.resource, dict(source.query)
        self._stopping = threading.Event()
        self._response: urllib3.BaseHTTPResponse | None = None
        self._version = ""

    def stop(self) -> None:
        self._stopping.set()
        response = self._response
        if isinstance(response, urllib3.HTTPResponse):
            with contextlib.suppress(OSError, ValueError, RuntimeError):  # it ended by itself
                response.shutdown()

    def run(self) -> None:
        failures, retry = 0, self._api.patience.retry
        try:
            while not self._stopping.wait(retry.pause(failures) if failures else 0.0):
                failures = 0 if self._watch_once() else failures + 1
        except UnknownKindError:  # without Knative, for example, there are no revisions
            self._watching.post(self._source, [])
        except KdeployError as error:
            self._watching.post(self._source, error)

    def _watch_once(self) -> bool:
        """List if necessary, and watch until the API server ends it; return False if it failed."""
        try:
            if not self._version:
                documents, self._version = self._api.list(self._resource, self._namespace, self._query)
                self._watching.post(self._source, documents)
            self._watch()
        except GoneError:
            self._version = ""
        except TargetError as error:
            if self._stopping.is_set():
                return True
            if not error.retryable:
                raise
            self._watching.post(self._source, error)
        else:
            return True
        return False

    def _watch(self) -> None:
        """Watch from the last version seen until the API server ends it."""
        self._response = self._api.open_watch(self._resource, self._namespace, self._version, self._query)
        try:
            if self._stopping.is_set():
                self._response.close()
                return
            self._watching.post(self._source)
            for kind, document in self._api.read_watch(self._response):
                self._version = document["metadata"]["resourceVersion"]
                if kind != "BOOKMARK":
                    self._watching.post(self._source, (document, kind == "DELETED"))
        finally:
            self._response = None


def _uid(document: Document) -> str:
    return str(document["metadata"]["uid"])
