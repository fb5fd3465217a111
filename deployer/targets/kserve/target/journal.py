"""The journal of a service as ControllerRevisions, and with it the right to change the service.

A rollout begins by creating the entry of the next number, which the API server lets only one do. An entry's
`data` cannot be changed, so its events are an annotation. The InferenceService owns its entries, which the
cluster collects with it. Implements deployer.targets.protocols.Journal.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import msgspec
from msgspec import Struct, structs

from deployer.errors import ConflictError, KdeployError, NotFoundError, TargetError
from deployer.journal import (
    BOUND,
    Entry,
    JournalEvent,
    Outcome,
    add_event,
    check_expected,
    refuse_another,
    settle,
    superfluous,
    takes_over,
    write_time,
)
from deployer.observed import RELEASE_LABEL, Document, Reference
from deployer.targets.kserve.client.api_errors import OutdatedError
from deployer.targets.kserve.client.resources import CONTROLLER_REVISION
from deployer.targets.kserve.target.apply import transfer_ownership
from deployer.targets.kserve.target.runs import is_alive, name_run, running
from deployer.targets.kserve.target.session import Session

# Not KServe's label: a workload's controller adopts ControllerRevisions that its selector matches.
OF_SERVICE = "kdeploy.dev/service"
_LABELS = {"app.kubernetes.io/managed-by": "kdeploy"}
ENTRIES = ",".join([OF_SERVICE, *(f"{key}={value}" for key, value in _LABELS.items())])  # of any service
_EVENTS, _RUN = "kdeploy.dev/events", "kdeploy.dev/run"
_NOT_IN_DATA = ("number", "outcome", "reason", "since", "events")
_HOLD = BOUND / 2  # seconds after which nothing more is written, long before others take the run for dead


class Rollout(Struct):
    """The rollout of one entry; `orphans` are entries of runs that were killed before there was a service."""

    entry: Document
    orphans: list[Document]
    began: float
    finished: bool = False

    @property
    def number(self) -> int:
        """The number of the entry."""
        return int(self.entry["revision"])


class Journal:
    """The journals of a cluster's services."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def entries(self, reference: Reference) -> list[Entry]:
        """Return the entries of a service, the oldest first."""
        return settle([_entry(document) for document in self._list(reference)], self._now())

    def note(self, reference: Reference, number: int, event: JournalEvent) -> None:
        """Add an event to an entry; nothing happens where the entry is gone."""
        self._note(_place(reference, number), event)

    @contextlib.contextmanager
    def begin(self, reference: Reference, planned: Entry, expect: int | None) -> Iterator[Rollout]:
        """Begin a rollout: create its entry, or take over the one of a run that was killed.

        For as long as the `with` lasts, no other rollout of the service begins. Raises ConflictError, naming
        who, where another one is under way or was since entry `expect`.
        """
        run, patience = name_run(), self._session.patience
        running.add(run)
        rollout = None
        try:
            rollout = patience.again(lambda: self._claim(reference, planned, run, expect), _LostError)
            yield rollout
        except KdeployError as error:
            # An API server that cannot be reached now is left alone: later the entry counts as interrupted.
            if rollout and not rollout.finished and not (isinstance(error, TargetError) and error.retryable):
                with contextlib.suppress(KdeployError):
                    interrupted = JournalEvent(outcome=Outcome.INTERRUPTED)
                    self._note(_place(reference, rollout.number), interrupted, known=rollout.entry)
            raise
        finally:
            running.discard(run)

    def finish(self, rollout: Rollout, owner: Document) -> None:
        """Note that all documents are applied; the service owns the entry, and those that were left over."""
        owned = {"ownerReferences": [owner]}
        place = rollout.entry["metadata"]["namespace"], rollout.entry["metadata"]["name"]
        self._note(place, JournalEvent(outcome=Outcome.APPLIED), owned, known=rollout.entry)
        rollout.finished = True
        for one in rollout.orphans:
            with contextlib.suppress(NotFoundError):
                self._merge(one, owned)

    def check_time(self, rollout: Rollout) -> None:
        """Raise TargetError where it has taken so long that others may soon take this run for dead."""
        if self._session.patience.clock.now() - rollout.began > _HOLD:
            raise TargetError(
                f"applying took more than {_HOLD:g} s and was stopped half-way",
                hint="check that the API server is not overloaded, then run it again",
            )

    def prune(self, reference: Reference, limit: int) -> None:
        """Delete the oldest entries, all but `limit`."""
        for entry in superfluous([_entry(document) for document in self._list(reference)], limit):
            self._session.api.delete(CONTROLLER_REVISION, *_place(reference, entry.number))

    def orphans(self, reference: Reference) -> list[Document]:
        """Return the entries that no service owns, so that nothing collects them.

        Raises ConflictError, naming who, where one of them is being applied.
        """
        found = _unowned(self._list(reference))
        for one in found:
            refuse_another(_entry(one), alive=is_alive(_run(one)), now=self._now(), where=str(reference))
        return found

    def collect(self, reference: Reference, orphans: list[Document]) -> None:
        """Delete entries that no service owns, and let the cluster collect what their rollouts created."""
        for one in orphans:
            if bundle := _entry(one).bundle:
                transfer_ownership(self._session.api, one, bundle)
            self._session.api.delete(CONTROLLER_REVISION, reference.namespace, one["metadata"]["name"])

    def _claim(self, reference: Reference, planned: Entry, run: str, expect: int | None) -> Rollout:
        """Create an entry, or take over the newest. Raises _LostError where another run was faster."""
        began = self._session.patience.clock.now()
        documents = sorted(self._list(reference), key=lambda document: int(document["revision"]))
        newest = documents[-1] if documents else None
        if newest and self._is_ours(newest, planned, run, reference):
            before = documents[:-1]
            if expect != int(newest["revision"]):  # run again, the killed run's own entry is the newest
                check_expected(_entry(before[-1]) if before else None, expect, str(reference))
            with _race():
                claimed = newest if _run(newest) == run else self._take_over(newest, planned, run)
            return Rollout(claimed, _unowned(before), began)
        check_expected(_entry(newest) if newest else None, expect, str(reference))
        number = int(newest["revision"]) + 1 if newest else 1
        with _race():
            created = self._session.api.create(
                CONTROLLER_REVISION, self._document(reference, planned, number, run)
            )
        return Rollout(created, _unowned(documents), began)

    def _is_ours(self, newest: Document, planned: Entry, run: str, reference: Reference) -> bool:
        if _run(newest) == run:  # an attempt before created it, and only the answer was lost
            return True
        alive = is_alive(_run(newest))
        return takes_over(_entry(newest), planned, alive=alive, now=self._now(), where=str(reference))

    def _take_over(self, newest: Document, planned: Entry, run: str) -> Document:
        event = JournalEvent(outcome=Outcome.APPLYING, who=planned.who)
        return self._add(newest, event, {"annotations": {_RUN: run}})

    def _note(
        self,
        place: tuple[str, str],
        event: JournalEvent,
        more: Document | None = None,
        known: Document | None = None,
    ) -> None:
        """Add an event to an entry, which is read where it is not `known` as it is now."""

        def attempt() -> None:
            nonlocal known
            current, known = known or self._session.api.get(CONTROLLER_REVISION, *place), None
            if current and not _is_noted(_entry(current), event):
                self._add(current, event, more)

        with contextlib.suppress(NotFoundError):
            self._session.patience.again(attempt, OutdatedError)

    def _add(self, document: Document, event: JournalEvent, more: Document | None = None) -> Document:
        """Add an event to an entry as it was read. Raises OutdatedError where it has changed since."""
        entry = add_event(_entry(document), structs.replace(event, at=self._now()))
        more = more or {}
        annotations = {_EVENTS: _encode(entry.events), **more.get("annotations", {})}
        version = document["metadata"]["resourceVersion"]
        return self._merge(document, {**more, "resourceVersion": version, "annotations": annotations})

    def _merge(self, document: Document, metadata: Document) -> Document:
        place = document["metadata"]["namespace"], document["metadata"]["name"]
        return self._session.api.merge(CONTROLLER_REVISION, *place, {"metadata": metadata})

    def _document(self, reference: Reference, planned: Entry, number: int, run: str) -> Document:
        """Return a new entry as an object."""
        now = self._now()
        lasting = msgspec.to_builtins(structs.replace(planned, when=now))
        for key in _NOT_IN_DATA:
            del lasting[key]
        begun = JournalEvent(outcome=Outcome.APPLYING, at=now, who=planned.who)
        namespace, name = _place(reference, number)
        return {
            "apiVersion": CONTROLLER_REVISION.api_version,
            "kind": CONTROLLER_REVISION.kind,
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {OF_SERVICE: reference.name, RELEASE_LABEL: planned.release, **_LABELS},
                "annotations": {_EVENTS: _encode([begun]), _RUN: run},
            },
            "revision": number,
            "data": {"entry": _encode(lasting)},
        }

    def _list(self, reference: Reference) -> list[Document]:
        selector = ",".join(f"{k}={v}" for k, v in {OF_SERVICE: reference.name, **_LABELS}.items())
        query = {"labelSelector": selector}
        return self._session.api.list(CONTROLLER_REVISION, reference.namespace, query)[0]

    def _now(self) -> str:
        return write_time(self._session.patience.clock.utc())


class _LostError(ConflictError):
    """Another run was faster: look again."""


@contextlib.contextmanager
def _race() -> Iterator[None]:
    try:
        yield
    except (ConflictError, NotFoundError) as error:
        raise _LostError(error.what, where=error.where, hint="run it again") from error


def _entry(document: Document) -> Entry:
    """Read an entry; of one that another version of kdeploy wrote, what can be read."""
    annotations = document["metadata"].get("annotations", {})
    entry = Entry()
    events: tuple[JournalEvent, ...] = ()
    with contextlib.suppress(msgspec.DecodeError, KeyError, TypeError):
        entry = msgspec.json.decode(document["data"]["entry"], type=Entry)
    with contextlib.suppress(msgspec.DecodeError, KeyError, TypeError):
        events = msgspec.json.decode(annotations[_EVENTS], type=tuple[JournalEvent, ...])
    entry = structs.replace(entry, number=int(document["revision"]))
    for event in events:
        entry = add_event(entry, event)
    return entry


def _is_noted(entry: Entry, event: JournalEvent) -> bool:
    """Return whether the newest event says the same, as after an answer that was lost."""
    return any(structs.replace(event, at=newest.at) == newest for newest in entry.events[-1:])


def _encode(value: object) -> str:
    """Encode as JSON that every encoder writes alike: ASCII, without what Go's would escape.

    The API server encodes `data` anew at every change of the annotations, and refuses it if a byte differs.
    """
    text = json.dumps(msgspec.to_builtins(value))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _unowned(documents: list[Document]) -> list[Document]:
    return [one for one in documents if not one["metadata"].get("ownerReferences")]


def _run(document: Document) -> str:
    return str(document["metadata"].get("annotations", {}).get(_RUN, ""))


def _place(reference: Reference, number: int) -> tuple[str, str]:
    return reference.namespace, f"{reference.name}-kdeploy-{number}"
