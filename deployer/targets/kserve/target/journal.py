"""The history of a service, as ControllerRevisions, and with it the right to change the service.

A rollout begins by creating the entry of the next number, which the API server lets only one do. An entry's
`data` cannot be changed, so what does change is in its annotations. It comes to belong to the
InferenceService and is collected with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from deployer.errors import ConflictError, KdeployError, NotFoundError, TargetError
from deployer.journal import APPLIED, APPLYING, BOUND, INTERRUPTED, refuse_another, settle, superfluous, takes_over, write_time
from deployer.patience import Clock
from deployer.observed import RELEASE_LABEL, Document, Reference
from deployer.journal import Entry
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.resources import CONTROLLER_REVISION
from deployer.targets.kserve.target.apply import transfer_ownership

# Not KServe's label: a workload's controller adopts ControllerRevisions that its selector matches.
OF_SERVICE = "kdeploy.dev/service"
_LABELS = {"app.kubernetes.io/managed-by": "kdeploy"}
ENTRIES = ",".join([OF_SERVICE, *(f"{key}={value}" for key, value in _LABELS.items())])  # of any service
_OUTCOME, _SINCE, _RUN = "kdeploy.dev/outcome", "kdeploy.dev/since", "kdeploy.dev/run"
_IN_ANNOTATIONS = ("number", "outcome", "since")
_HOLD = BOUND / 2  # seconds after which no more is written, so that nothing is when others count it for dead

_running: set[str] = set()  # the rollouts of this process that are applying right now


class History:
    """The entries of one service."""

    def __init__(self, api: Api, reference: Reference) -> None:
        self._api = api
        self._reference = reference
        self._clock = api.patience.clock

    def read(self) -> list[Entry]:
        """Return the entries, the oldest first."""
        return settle([_entry(document) for document in self._list()], self._now())

    def begin(self, planned: Entry) -> Rollout:
        """Begin a rollout: make its entry, or go on with the one of a run that was killed.

        Raises ConflictError, naming who, where somebody else is just rolling out.
        """
        run = f"{_place()} {os.getpid()} {secrets.token_hex(8)}"
        _running.add(run)
        try:
            return self._api.patience.again(lambda: self._claim(planned, run), _LostError)
        except BaseException:
            _running.discard(run)
            raise

    def note(self, number: int, outcome: str, owner: Document | None = None) -> None:
        """Note how far a rollout is, and whose it is; an entry that was deleted with its service is none."""
        change = self._annotated(outcome)
        if owner:
            change["metadata"]["ownerReferences"] = [owner]
        with contextlib.suppress(NotFoundError):
            self._api.merge(CONTROLLER_REVISION, *self._place(number), change)

    def adopt(self, names: list[str], owner: Document) -> None:
        """Let entries belong to the service, so that they are collected with it."""
        for name in names:
            with contextlib.suppress(NotFoundError):
                change = {"metadata": {"ownerReferences": [owner]}}
                self._api.merge(CONTROLLER_REVISION, self._reference.namespace, name, change)

    def prune(self, limit: int) -> None:
        """Delete the oldest entries, all but `limit`."""
        old = superfluous([_entry(document) for document in self._list()], limit)
        self.remove([self._place(entry.number)[1] for entry in old])

    def orphans(self) -> list[Document]:
        """Return the entries that belong to no service, so that nothing collects them.

        Raises ConflictError, naming who, where one of them is just being applied.
        """
        found = [one for one in self._list() if not one["metadata"].get("ownerReferences")]
        for one in found:
            alive = _alive(_run(one))
            refuse_another(_entry(one), alive=alive, now=self._now(), where=str(self._reference))
        return found

    def collect(self, orphans: list[Document]) -> None:
        """Delete entries that belong to no service, and let the cluster collect what they left behind."""
        for one in orphans:
            transfer_ownership(self._api, one, _entry(one).documents, self._reference.namespace)
        self.remove([one["metadata"]["name"] for one in orphans])

    def remove(self, names: list[str]) -> None:
        """Delete entries."""
        for name in names:
            self._api.delete(CONTROLLER_REVISION, self._reference.namespace, name)

    def _claim(self, planned: Entry, run: str) -> Rollout:
        """Make an entry, or take over the newest. Raises _LostError where another one was quicker."""
        documents = sorted(self._list(), key=lambda document: int(document["revision"]))
        newest = documents[-1] if documents else None
        number = int(newest["revision"]) if newest else 0
        if newest is None or not self._is_ours(newest, planned, run):
            number += 1
            entry = msgspec.structs.replace(planned, number=number)
            with _race():
                self._api.create(CONTROLLER_REVISION, self._document(entry, run))
        elif _run(newest) != run:
            change = self._annotated(APPLYING, {_RUN: run})
            change["metadata"]["resourceVersion"] = newest["metadata"]["resourceVersion"]
            with _race():
                self._api.merge(CONTROLLER_REVISION, *self._place(number), change)
        own = self._place(number)[1]
        names = [d["metadata"]["name"] for d in documents if not d["metadata"].get("ownerReferences")]
        orphans = [name for name in names if name != own]
        return Rollout(self, number, run, orphans, self._clock)

    def _is_ours(self, newest: Document, planned: Entry, run: str) -> bool:
        if _run(newest) == run:  # an attempt before has made it, and only the answer was lost
            return True
        where = str(self._reference)
        return takes_over(_entry(newest), planned, alive=_alive(_run(newest)), now=planned.when, where=where)

    def _document(self, entry: Entry, run: str) -> Document:
        """Return an entry as an object, its lasting part in one text.

        The API server encodes `data` anew at every change of the annotations and refuses it if a byte
        differs. So the text is one that every encoder of JSON writes alike: plain ASCII, without what Go's
        would escape.
        """
        data = msgspec.to_builtins(entry)
        for key in _IN_ANNOTATIONS:
            del data[key]
        text = json.dumps(data)
        for character in "<>&":
            text = text.replace(character, f"\\u{ord(character):04x}")
        namespace, name = self._place(entry.number)
        return {
            "apiVersion": CONTROLLER_REVISION.api_version,
            "kind": CONTROLLER_REVISION.kind,
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {OF_SERVICE: self._reference.name, RELEASE_LABEL: entry.release, **_LABELS},
                "annotations": {_OUTCOME: entry.outcome, _SINCE: entry.since, _RUN: run},
            },
            "revision": entry.number,
            "data": {"entry": text},
        }

    def _annotated(self, outcome: str, more: dict[str, str] | None = None) -> Document:
        return {"metadata": {"annotations": {_OUTCOME: outcome, _SINCE: self._now(), **(more or {})}}}

    def _now(self) -> str:
        return write_time(self._clock.utc())

    def _list(self) -> list[Document]:
        selector = ",".join(f"{k}={v}" for k, v in {OF_SERVICE: self._reference.name, **_LABELS}.items())
        namespace = self._reference.namespace
        return self._api.list(CONTROLLER_REVISION, namespace, {"labelSelector": selector})[0]

    def _place(self, number: int) -> tuple[str, str]:
        return self._reference.namespace, f"{self._reference.name}-kdeploy-{number}"


class Rollout:
    """The documents of one entry being applied: for as long as the `with` lasts, nobody else begins."""

    def __init__(self, history: History, number: int, run: str, orphans: list[str], clock: Clock) -> None:
        self.number = number
        self._clock = clock
        self._history = history
        self._run = run
        self._orphans = orphans  # entries of runs that were killed before there was a service
        self._applied = False
        self._began = clock.now()

    def __enter__(self) -> Rollout:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _running.discard(self._run)
        if not isinstance(error, KdeployError) or self._applied:
            return
        if isinstance(error, TargetError) and error.retryable:
            return  # who was not reached is not asked once more: after a while it counts as interrupted
        with contextlib.suppress(KdeployError):
            self._history.note(self.number, INTERRUPTED)

    def check(self) -> None:
        """Raise TargetError where it has taken so long that others may soon count this rollout for dead."""
        if self._clock.now() - self._began > _HOLD:
            raise TargetError(
                f"applying took more than {_HOLD:g} s and was given up half way",
                hint="is the API server overloaded? run it again",
            )

    def done(self, owner: Document) -> None:
        """Note that all is applied; the entry, and those that were left over, belong to the service now."""
        self._history.note(self.number, APPLIED, owner)
        self._applied = True
        self._history.adopt(self._orphans, owner)


class _LostError(ConflictError):
    """Another rollout was quicker: look again."""


@contextlib.contextmanager
def _race() -> Iterator[None]:
    try:
        yield
    except (ConflictError, NotFoundError) as error:
        raise _LostError(error.what, where=error.where, hint="run it again") from error


def _entry(document: Document) -> Entry:
    """Read an entry; of one that a kdeploy of another version wrote, what can be read."""
    annotations = document["metadata"].get("annotations", {})
    try:
        lasting = msgspec.json.decode(document["data"]["entry"], type=Entry)
    except (msgspec.DecodeError, KeyError, TypeError):
        lasting = Entry()
    return msgspec.structs.replace(
        lasting,
        number=document["revision"],
        outcome=annotations.get(_OUTCOME, ""),
        since=annotations.get(_SINCE, ""),
    )


def _run(document: Document) -> str:
    return str(document["metadata"].get("annotations", {}).get(_RUN, ""))


def _alive(run: str) -> bool | None:
    """Return whether the process of a run still applies; None where it is of another machine."""
    place, _, rest = run.partition(" ")
    pid, _, _token = rest.partition(" ")
    if place != _place() or not pid.isdigit():
        return None
    if int(pid) == os.getpid():
        return run in _running
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _place() -> str:
    """Name what a process id is good for: this boot of this machine, and on Linux this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        import socket

        return socket.gethostname()
