"""The record of a service: its wanted documents, its revisions, its traffic and its history. Pure.

The rules are KServe's in Knative mode. A change of the predictor's template makes a new revision.
`canaryTrafficPercent` splits the traffic between the newest revision and the one that was last rolled out in
full. A revision that is not ready does not change the traffic.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from msgspec import Struct, structs

from deployer.bundle import Bundle
from deployer.errors import TargetError
from deployer.journal import Entry, JournalEvent, Outcome, add_event, superfluous
from deployer.observed import RELEASE_LABEL, Document, Reference

DOMAIN = "example.com"  # KServe's default
CLUSTER_DOMAIN = "svc.cluster.local"
HISTORY = 20  # journal entries kept, and revisions kept besides those in use; Knative keeps 20 revisions

_NOT_TEMPLATE = frozenset({"canaryTrafficPercent", "minReplicas", "maxReplicas"})


class Revision(Struct, frozen=True, kw_only=True):
    """One predictor template, and the spec of its ServingRuntime."""

    name: str
    release: str | None
    predictor: Document
    runtime: Document
    failure: str = ""  # why it cannot become ready


class Line(Struct, frozen=True):
    """The percentage of requests for one revision."""

    revision: str
    percent: int


class Record(Struct, frozen=True, kw_only=True):
    """A service: its wanted documents, its revisions, and the actual traffic."""

    service: Document
    runtime: Document
    created: str
    generation: int = 1
    revisions: tuple[Revision, ...] = ()
    latest: str = ""
    ready: str = ""
    rolled_out: str = ""
    previous: str = ""
    traffic: tuple[Line, ...] = ()
    history: tuple[Entry, ...] = ()

    @property
    def reference(self) -> Reference:
        """The name of the service."""
        metadata = self.service["metadata"]
        return Reference(metadata["namespace"], metadata["name"])

    @property
    def percent(self) -> int:
        """The wanted percentage of requests for the newest revision."""
        wanted = self.service["spec"]["predictor"].get("canaryTrafficPercent")
        return 100 if wanted is None else int(wanted)

    @property
    def desired_traffic(self) -> tuple[Line, ...]:
        """The wanted traffic. The first release of a service gets all of it, also as a canary."""
        if self.percent >= 100 or self.rolled_out in ("", self.latest):
            return (Line(self.latest, 100),)
        return (Line(self.latest, self.percent), Line(self.rolled_out, 100 - self.percent))

    @property
    def arrived(self) -> bool:
        """Whether the actual traffic equals the wanted traffic."""
        return (self.traffic, self.ready) == (self.desired_traffic, self.latest)

    @property
    def required(self) -> frozenset[str]:
        """The revisions that must run: those in the actual and in the wanted traffic."""
        lines = {line.revision for line in (*self.traffic, *self.desired_traffic)}
        return frozenset(name for name in lines if not self.revision(name).failure)

    @property
    def in_use(self) -> frozenset[str]:
        """The releases that get traffic or will get it, and the one before."""
        names = {self.latest, self.rolled_out, self.previous, *(line.revision for line in self.traffic)}
        return frozenset(r.release for r in self.revisions if r.name in names and r.release)

    def revision(self, name: str) -> Revision:
        """Return a revision by its name."""
        return next(revision for revision in self.revisions if revision.name == name)


def set_desired(record: Record | None, service: Document, runtime: Document, now: str) -> Record:
    """Make the documents the wanted state of a service. Applying the same documents again changes nothing.

    An earlier template is its revision again, and a failed revision gets another attempt.
    """
    record = record or Record(service=service, runtime=runtime, created=now, generation=0)
    changed = (record.service.get("spec"), record.runtime) != (service["spec"], runtime)
    revision = _revision(record, service, runtime)
    others = tuple(r for r in record.revisions if r.name != revision.name)
    record = structs.replace(
        record,
        service=service,
        runtime=runtime,
        generation=record.generation + (changed or record.generation == 0),
        revisions=tuple(sorted((*others, revision), key=lambda r: r.name)),
        latest=revision.name,
    )
    return _without_old_revisions(record)


def append_entry(record: Record, entry: Entry, now: str) -> Record:
    """Add a journal entry."""
    number = record.history[-1].number + 1 if record.history else 1
    entry = structs.replace(entry, number=number, when=now)
    history = (
        *record.history,
        add_event(entry, JournalEvent(outcome=Outcome.APPLIED, at=now, who=entry.who)),
    )
    old = superfluous(history, HISTORY)
    return structs.replace(record, history=history[len(old) :])


def note_event(record: Record, number: int, event: JournalEvent) -> Record:
    """Add an event to a journal entry."""
    history = tuple(add_event(entry, event) if entry.number == number else entry for entry in record.history)
    return structs.replace(record, history=history)


def commit_traffic(record: Record) -> Record:
    """Make the wanted traffic the actual traffic; all of its revisions are ready."""
    rolled_out, previous = record.rolled_out, record.previous
    if record.desired_traffic == (Line(record.latest, 100),) and rolled_out != record.latest:
        rolled_out, previous = record.latest, rolled_out
    return structs.replace(
        record, traffic=record.desired_traffic, ready=record.latest, rolled_out=rolled_out, previous=previous
    )


def note_failure(record: Record, name: str, failure: str) -> Record:
    """Set why a revision cannot become ready; an empty `failure` clears it."""
    revisions = tuple(
        structs.replace(revision, failure=failure) if revision.name == name else revision
        for revision in record.revisions
    )
    return structs.replace(record, revisions=revisions)


def check_bundle(bundle: Bundle) -> None:
    """Raise TargetError for a bundle that the local target cannot serve."""
    release_folder(bundle.storage_uri)
    if not 0 <= bundle.percent <= 100:
        raise TargetError(
            f"invalid percentage {bundle.percent}: use 0 to 100", where="predictor.canaryTrafficPercent"
        )


def referenced_variables(predictor: Document) -> dict[str, str]:
    """Return the variables of a model whose values are in a cluster's objects, with the place of each.

    On this machine they come from the environment of the command that rolls out.
    """
    kinds = {"secretKeyRef": "Secret", "configMapKeyRef": "ConfigMap"}
    return {
        variable["name"]: f"key {source['key']} of {kinds[kind]} {source['name']}"
        for variable in predictor["model"].get("env", ())
        for kind, source in variable.get("valueFrom", {}).items()
        if kind in kinds and not source.get("optional")
    }


def hosts(reference: Reference) -> tuple[str, str]:
    """Return the two Hosts of a service: the external one, and the cluster-local one."""
    name = f"{reference.name}.{reference.namespace}".lower()  # a model that is tried can have capitals
    return f"{name}.{DOMAIN}", f"{name}.{CLUSTER_DOMAIN}"


def release_folder(storage_uri: str) -> Path:
    """Return the folder that a `file://` URL names. Raises TargetError for any other scheme."""
    parts = urlsplit(storage_uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise TargetError(
            f"cannot serve {storage_uri}: not a folder of this machine",
            where="predictor.model.storageUri",
            hint="Set store.uri to a folder: the local target serves releases from folders.",
        )
    return Path(url2pathname(parts.path))


def _revision(record: Record, service: Document, runtime: Document) -> Revision:
    predictor = {k: v for k, v in service["spec"]["predictor"].items() if k not in _NOT_TEMPLATE}
    metadata = service["metadata"]
    release = metadata.get("labels", {}).get(RELEASE_LABEL)
    fresh = Revision(name="", release=release, predictor=predictor, runtime=runtime["spec"])
    for revision in reversed(record.revisions):
        if _template(revision) == _template(fresh):
            return structs.replace(revision, failure="")
    numbers = [int(revision.name.rpartition("-")[2]) for revision in record.revisions]
    number = max(numbers, default=0) + 1
    return structs.replace(fresh, name=f"{metadata['name']}-predictor-{number:05}")


def _template(revision: Revision) -> str:
    return json.dumps([revision.release, revision.predictor, revision.runtime], sort_keys=True)


def _without_old_revisions(record: Record) -> Record:
    used = {record.latest, record.ready, record.rolled_out, record.previous, *record.required}
    old = [revision for revision in record.revisions if revision.name not in used]
    dropped = {revision.name for revision in old[: max(len(old) - HISTORY, 0)]}
    kept = tuple(revision for revision in record.revisions if revision.name not in dropped)
    return structs.replace(record, revisions=kept)
