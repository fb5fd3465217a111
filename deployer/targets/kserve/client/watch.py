"""A live copy of objects that queries select, kept by watches: no polling.

Each selection of objects is listed once and watched from there by a thread of its own, which
resumes after any break: a watch that times out, a dropped connection, a version that is forgotten (410).
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import urllib3
from msgspec import Struct

from deployer.errors import KdeployError, TargetError
from deployer.observed import Document
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.api_errors import GoneError, UnknownKindError
from deployer.targets.kserve.client.resources import EVENT, Resource

_PARTING = 1.0  # seconds that threads get to end; one that a silent API server holds ends with the process
_LOOK_UP = 1.0  # seconds: Python overlooks a Ctrl-C that comes just before it begins to wait
EVENTS_MAX = 16  # objects whose events are followed; a failing release fails in each of its pods alike


class _Selection(Struct, frozen=True):
    """What one watch sees: a kind of object, and the query that selects some of them."""

    resource: Resource
    query: tuple[tuple[str, str], ...]


_Message = Callable[[], None]  # what a thread saw, to be taken in by the one that waits


class Watching:
    """The live copy, for as long as the `with` lasts. Its threads hold no lock and end with it.

    Events about the objects that `followed` names, at every change anew, are part of it, selected by each
    object's uid: a shared namespace may hold thousands of others.
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
        self._messages: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._known: dict[_Selection, dict[str, Document]] = {}
        self._followers: dict[_Selection, _Follower] = {}
        for resource, query in chosen.items():
            self._add(_Selection(resource, tuple(query.items())))
        self._unlisted = set(self._followers)

    def _add(self, source: _Selection) -> _Follower:
        follower = _Follower(self._api, self._namespace, source, self)
        self._followers[source] = follower
        return follower

    def __enter__(self) -> Watching:
        for follower in self._followers.values():
            follower.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for follower in self._followers.values():
            follower.stop()
        end = self._clock.now() + _PARTING
        for follower in set(self._followers.values()) - {threading.current_thread()}:
            follower.join(max(end - self._clock.now(), 0.0))

    @property
    def complete(self) -> bool:
        """Whether everything has been seen once; before that, what is missing says nothing."""
        return not self._unlisted

    def of(self, resource: Resource) -> list[Document]:
        """Return the objects of one kind as they are now."""
        known = (documents for source, documents in self._known.items() if source.resource == resource)
        return [document for documents in known for document in documents.values()]

    @property
    def trouble(self) -> KdeployError | None:
        """What keeps a part of it from being observed right now."""
        return next(iter(self._troubles.values()), None)

    @property
    def silence(self) -> KdeployError:
        """What has not been seen at all, where `complete` is False."""
        names = sorted(source.resource.full_name for source in self._unlisted)
        return TargetError(f"the API server has not listed {', '.join(names)}")

    def wait(self, seconds: float) -> bool:
        """Wait for a change and take in all that there are; False after `seconds` without one.

        Raises TargetError for a failure that trying again does not change.
        """
        if not self._take_first(self._clock.now() + seconds):
            return False
        with contextlib.suppress(queue.Empty):
            while True:
                self._messages.get_nowait()()
        self._follow_events()
        return True

    def _follow_events(self) -> None:
        """Follow the events about objects that are new among those to be followed."""
        for document in self._followed(self) if self._followed else ():
            source = _Selection(EVENT, (("fieldSelector", f"involvedObject.uid={_uid(document)}"),))
            followed = sum(one.resource == EVENT for one in self._followers)
            if source not in self._followers and followed < EVENTS_MAX:
                self._add(source).start()

    def _take_first(self, end: float) -> bool:
        while True:
            left = max(end - self._clock.now(), 0.001)
            with contextlib.suppress(queue.Empty):
                self._messages.get(timeout=min(left, _LOOK_UP))()
                return True
            if left <= _LOOK_UP:
                return False

    def post(self, message: _Message = lambda: None) -> None:
        """Let `wait` take in a message and return, from another thread."""
        self._messages.put(message)

    def opened(self, source: _Selection) -> None:
        """Take in that a watch is open."""
        self._troubles.pop(source, None)

    def listed(self, source: _Selection, documents: list[Document]) -> None:
        """Take in a list."""
        self.opened(source)
        self._unlisted.discard(source)
        self._known[source] = {_uid(one): one for one in documents}

    def changed(self, source: _Selection, document: Document, deleted: bool) -> None:
        """Take in a change of one object."""
        self.opened(source)
        self._known[source][_uid(document)] = document
        if deleted:
            del self._known[source][_uid(document)]

    def broke(self, source: _Selection, error: KdeployError) -> None:
        """Take in why a watch broke off. Raises the error where trying again does not change it."""
        if not error.retryable:
            raise error
        self._troubles[source] = error


class _Follower(threading.Thread):
    def __init__(self, api: Api, namespace: str, source: _Selection, watching: Watching) -> None:
        super().__init__(name=f"watch {source.resource.plural}", daemon=True)
        self._api, self._namespace, self._source = api, namespace, source
        self._resource, self._query = source.resource, dict(source.query)
        self._watching = watching
        self._stopping = threading.Event()
        self._response: urllib3.BaseHTTPResponse | None = None
        self._version = ""

    def stop(self) -> None:
        self._stopping.set()
        response = self._response
        if isinstance(response, urllib3.HTTPResponse):
            try:
                response.shutdown()
            except (OSError, ValueError, RuntimeError):  # it ended by itself meanwhile
                return

    def run(self) -> None:
        try:
            self._follow()
        except UnknownKindError:  # no Knative, say: then there are none
            self._say(self._watching.listed, [])
        except KdeployError as error:
            self._say(self._watching.broke, error)

    def _say(self, take_in: Callable[..., None], *what: Any) -> None:
        self._watching.post(partial(take_in, self._source, *what))

    def _follow(self) -> None:
        failures, retry = 0, self._api.patience.retry
        while not self._stopping.wait(retry.pause(failures) if failures else 0.0):
            failures = 0 if self._watch_once() else failures + 1

    def _watch_once(self) -> bool:
        """List if necessary, and watch until that ends; return whether it ended well."""
        try:
            if not self._version:
                documents, self._version = self._api.list(self._resource, self._namespace, self._query)
                self._say(self._watching.listed, documents)
            self._watch()
        except GoneError:
            self._version = ""
        except TargetError as error:
            if self._stopping.is_set():
                return True
            if not error.retryable:
                raise
            self._say(self._watching.broke, error)
        else:
            return True
        return False

    def _watch(self) -> None:
        """Watch from the version that was seen last until the API server ends it."""
        self._response = self._api.open_watch(self._resource, self._namespace, self._version, self._query)
        try:
            if self._stopping.is_set():
                self._response.close()
                return
            self._say(self._watching.opened)
            for kind, document in self._api.read_watch(self._response):
                self._version = document["metadata"]["resourceVersion"]
                if kind != "BOOKMARK":
                    self._say(self._watching.changed, document, kind == "DELETED")
        finally:
            self._response = None


def _uid(document: Document) -> str:
    return str(document["metadata"]["uid"])
