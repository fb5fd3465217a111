"""What the supervisor and its clients say to each other, over JSON on the unix socket."""

from __future__ import annotations

from msgspec import Struct

from deployer import errors
from deployer.bundle import Bundle
from deployer.journal import Entry, JournalEvent

ALREADY_RUNNING = 3  # the daemon's exit status where another one holds the state folder


class RevisionInfo(Struct, frozen=True, kw_only=True):
    """A TorchServe that runs: its share of requests, its process, and its loopback URLs."""

    name: str
    release: str | None
    percent: int
    ready: bool
    reason: str
    pid: int | None
    inference: str | None
    management: str | None
    metrics: str | None
    draining: bool = False


class ServiceInfo(Struct, frozen=True, kw_only=True):
    """A service, the Host header that it answers to, and its TorchServes."""

    namespace: str
    name: str
    host: str
    revisions: tuple[RevisionInfo, ...] = ()


class Info(Struct, frozen=True, kw_only=True):
    """The supervisor: where it is, and what it runs. `pid` is None where none is running."""

    state: str
    pid: int | None = None
    ingress: str | None = None
    services: tuple[ServiceInfo, ...] = ()


class Wanted(Struct, frozen=True):
    """A bundle to be applied, and the entry of the journal that it makes."""

    bundle: Bundle
    entry: Entry
    expect: int | None = None


class Noted(Struct, frozen=True):
    """An event for an entry of the journal."""

    number: int
    event: JournalEvent


class Failure(Struct, frozen=True, omit_defaults=True):
    """An error as its class's name in `deployer.errors` and its text.

    Also the daemon's first and only line on stdout: with no `kind`, it is ready.
    """

    kind: str = ""
    what: str = ""
    where: str | None = None
    hint: str | None = None

    @classmethod
    def of(cls, error: errors.KdeployError) -> Failure:
        """Return what is sent for an error."""
        return cls(type(error).__name__, error.what, error.where, error.hint)

    def error(self) -> errors.KdeployError:
        """Return the error that was sent."""
        kind: type[errors.KdeployError] = getattr(errors, self.kind, errors.TargetError)
        return kind(self.what, where=self.where, hint=self.hint)
