"""The journal of a service, stored as ControllerRevisions; its newest entry is the lock of the service.

A rollout begins by creating the entry of the next number, which the API server lets only one process do. An
entry's `data` is immutable, so its events are an annotation. The InferenceService owns its entries, and the
cluster collects them with it. Implements deployer.targets.protocols.Journal.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import structs

from deployer.bundle import Bundle
from deployer.errors import KdeployError, NotFoundError, TargetError
from deployer.journal import (
    BOUND,
    EVENTS_MAX,
    Entry,
    JournalEvent,
    Outcome,
    add_event,
    check_expected,
    refuse_another,
    settle,
    takes_over,
    write_time,
)
from deployer.observed import RELEASE_LABEL, Document, Reference
from deployer.targets.kserve.client.api_errors import ExistsError, OutdatedError
from deployer.targets.kserve.client.resources import CONTROLLER_REVISION
from deployer.targets.kserve.target.session import Session

# Not KServe's label: a workload's controller adopts the ControllerRevisions that its selector matches.
OF_SERVICE = "kdeploy.dev/service"
_LABELS = {"app.kubernetes.io/managed-by": "kdeploy"}
ENTRIES = ",".join([OF_SERVICE, *(f"{key}={value}" for key, value in _LABELS.items())])  # of any service
_EVENTS, _RUN = "kdeploy.dev/events", "kdeploy.dev/run"
_NOT_IN_DATA = ("number", "outcome", "reason", "since", "events")
_LOST = (ExistsError, OutdatedError, NotFoundError)  # another run was faster: read the journal again
_HOLD = BOUND / 2  # seconds after which a rollout writes nothing more, long before others consider it dead

_running: set[str] = set()  # the runs of this process that are applying


class Rollout:
    """The rollout of one entry. `orphans` are entries of killed runs that no service owns."""

    def __init__(self, session: Session, entry: Document, orphans: list[Document], began: float) -> None:
        self.entry, self.finished = entry, False
        self.number = _number(entry)
        self._session, self._orphans, self._began = session, orphans, began

    def check_time(self) -> None:
        """Raise TargetError if the rollout has taken so long that others can soon consider it dead."""
        if self._session.patience.clock.now() - self._began > _HOLD:
            raise TargetError(
                f"applying took more than {_HOLD:g} s and was stopped",
                hint="Check that the API server is not overloaded, then run the command again.",
            )

    def finish(self, owner: Document) -> None:
        """Note that all documents are applied; make the service the owner of the entry and the orphans."""
        owned = {"ownerReferences": [owner]}
        name = self.entry["metadata"]["name"]
        event = JournalEvent(outcome=Outcome.APPLIED)
        _note(self._session, self.entry["metadata"]["namespace"], name, event, owned, known=self.entry)
        self.finished = True
        for one in self._orphans:
            with contextlib.suppress(NotFoundError):
                self._session.api.merge(CONTROLLER_REVISION, one, owned)


class Journal:
    """The journals of a cluster's services."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def entries(self, reference: Reference) -> list[Entry]:
        """Return the entries of a service, the oldest first."""
        return settle([_entry(document) for document in self._list(reference)], _now(self._session))

    def note(self, reference: Reference, number: int, event: JournalEvent) -> None:
        """Add an event to an entry; do nothing if the entry does not exist."""
        _note(self._session, reference.namespace, _name(reference, number), event)

    @contextlib.contextmanager
    def begin(self, reference: Reference, planned: Entry, expect: int | None) -> Iterator[Rollout]:
        """Begin a rollout: create its entry, or take over the entry of a killed run.

        As long as the `with` lasts, no other rollout of the service begins. Raises ConflictError, naming the
        author, if another rollout is under way or has begun since entry `expect`.
        """
        run = f"{_machine()} {os.getpid()} {secrets.token_hex(8)}"
        _running.add(run)
        rollout = None
        try:
            rollout = self._session.patience.again(
                lambda: self._claim(reference, planned, run, expect), *_LOST
            )
            yield rollout
            with contextlib.suppress(TargetError):  # the next rollout prunes what this one could not
                self._prune(reference)
        except KdeployError as error:
            # An API server that does not answer gets no more requests: the entry counts as interrupted later.
            if rollout and not rollout.finished and not (isinstance(error, TargetError) and error.retryable):
                event, name = JournalEvent(outcome=Outcome.INTERRUPTED), _name(reference, rollout.number)
                with contextlib.suppress(KdeployError):
                    _note(self._session, reference.namespace, name, event, known=rollout.entry)
            raise
        finally:
            _running.discard(run)

    def orphans(self, reference: Reference) -> list[tuple[Document, Bundle | None]]:
        """Return the entries that no service owns, with their bundles: the cluster does not collect them.

        Raises ConflictError, naming the author, if one of them is being applied.
        """
        found = _unowned(self._list(reference))
        now, where = _now(self._session), str(reference)
        for one in found:
            refuse_another(_entry(one), alive=_is_alive(_run(one)), now=now, where=where)
        return [(one, _entry(one).bundle) for one in found]

    def _claim(self, reference: Reference, planned: Entry, run: str, expect: int | None) -> Rollout:
        """Create an entry, or take over the newest one. Raises one of _LOST if another run was faster."""
        began, where = self._session.patience.clock.now(), str(reference)
        documents = sorted(self._list(reference), key=_number)
        newest = documents[-1] if documents else None
        if newest and self._is_ours(newest, planned, run, where):
            before = documents[:-1]
            if expect != _number(newest):  # in a second command, the killed run's entry is the newest
                check_expected(_entry(before[-1]) if before else None, expect, where)
            if _run(newest) != run:
                event = JournalEvent(outcome=Outcome.APPLYING, who=planned.who)
                newest = _add(self._session, newest, event, {"annotations": {_RUN: run}})
            return Rollout(self._session, newest, _unowned(before), began)
        check_expected(_entry(newest) if newest else None, expect, where)
        number = _number(newest) + 1 if newest else 1
        document = _document(reference, planned, number, run, _now(self._session))
        created = self._session.api.create(CONTROLLER_REVISION, document)
        return Rollout(self._session, created, _unowned(documents), began)

    def _is_ours(self, newest: Document, planned: Entry, run: str, where: str) -> bool:
        if _run(newest) == run:  # an earlier attempt created it, and its answer was lost
            return True
        alive = _is_alive(_run(newest))
        return takes_over(_entry(newest), planned, alive=alive, now=_now(self._session), where=where)

    def _prune(self, reference: Reference) -> None:
        """Delete the oldest entries, all but `history-limit`."""
        documents = sorted(self._list(reference), key=_number)
        for one in documents[: max(len(documents) - self._session.config.history_limit, 0)]:
            self._session.api.delete(CONTROLLER_REVISION, reference.namespace, one["metadata"]["name"])

    def _list(self, reference: Reference) -> list[Document]:
        selector = ",".join(f"{k}={v}" for k, v in {OF_SERVICE: reference.name, **_LABELS}.items())
        query = {"labelSelector": selector}
        return self._session.api.list(CONTROLLER_REVISION, reference.namespace, query)[0]


def _note(
    session: Session,
    namespace: str,
    name: str,
    event: JournalEvent,
    more: Document | None = None,
    known: Document | None = None,
) -> None:
    """Add an event to an entry, unless its newest event equals it; `known` saves the first read."""

    def attempt() -> None:
        nonlocal known
        current, known = known or session.api.get(CONTROLLER_REVISION, namespace, name), None
        if not current:
            return
        newest = _events(current)[-1:]
        if not any(structs.replace(event, at=one.at) == one for one in newest):  # or an answer was lost
            _add(session, current, event, more)

    with contextlib.suppress(NotFoundError):
        session.patience.again(attempt, OutdatedError)


def _add(session: Session, document: Document, event: JournalEvent, more: Document | None = None) -> Document:
    """Add an event to an entry. Raises OutdatedError if the entry has changed since it was read."""
    events = (*_events(document), structs.replace(event, at=_now(session)))[-EVENTS_MAX:]
    more = more or {}
    annotations = {_EVENTS: _encode(events), **more.get("annotations", {})}
    version = document["metadata"]["resourceVersion"]
    change = {**more, "resourceVersion": version, "annotations": annotations}
    return session.api.merge(CONTROLLER_REVISION, document, change)


def _document(reference: Reference, planned: Entry, number: int, run: str, now: str) -> Document:
    """Return a new entry as an object."""
    lasting = msgspec.to_builtins(structs.replace(planned, when=now))
    for key in _NOT_IN_DATA:
        del lasting[key]
    begun = JournalEvent(outcome=Outcome.APPLYING, at=now, who=planned.who)
    return {
        "apiVersion": CONTROLLER_REVISION.api_version,
        "kind": CONTROLLER_REVISION.kind,
        "metadata": {
            "name": _name(reference, number),
            "namespace": reference.namespace,
            "labels": {OF_SERVICE: reference.name, RELEASE_LABEL: planned.release, **_LABELS},
            "annotations": {_EVENTS: _encode([begun]), _RUN: run},
        },
        "revision": number,
        "data": {"entry": _encode(lasting)},
    }


def _entry(document: Document) -> Entry:
    """Read an entry; from another version of kdeploy, the parts that can be read."""
    entry = Entry()
    with contextlib.suppress(msgspec.DecodeError, KeyError, TypeError):
        entry = msgspec.json.decode(document["data"]["entry"], type=Entry)
    entry = structs.replace(entry, number=_number(document))
    for event in _events(document):
        entry = add_event(entry, event)
    return entry


def _events(document: Document) -> tuple[JournalEvent, ...]:
    with contextlib.suppress(msgspec.DecodeError, KeyError, TypeError):
        text = document["metadata"]["annotations"][_EVENTS]
        return msgspec.json.decode(text, type=tuple[JournalEvent, ...])
    return ()


def _encode(value: object) -> str:
    """Encode as JSON that every encoder writes the same: in ASCII, and without what Go's would escape.

    The API server encodes `data` again at every change of the annotations, and rejects it if a byte differs.
    """
    text = json.dumps(msgspec.to_builtins(value))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _unowned(documents: list[Document]) -> list[Document]:
    return [one for one in documents if not one["metadata"].get("ownerReferences")]


def _run(document: Document) -> str:
    return str(document["metadata"].get("annotations", {}).get(_RUN, ""))


def _number(document: Document) -> int:
    return int(document["revision"])


def _name(reference: Reference, number: int) -> str:
    return f"{reference.name}-kdeploy-{number}"


def _now(session: Session) -> str:
    return write_time(session.patience.clock.utc())


def _is_alive(run: str) -> bool | None:
    """Return whether the process of a run is still applying; None if it runs on another machine."""
    machine, _, rest = run.partition(" ")
    pid = rest.partition(" ")[0]
    if machine != _machine() or not pid.isdigit():
        return None
    if int(pid) == os.getpid():
        return run in _running
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True


def _machine() -> str:
    """Return the scope of process ids: this boot of this machine, and on Linux this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        import socket

        return socket.gethostname()
