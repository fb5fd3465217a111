"""The JSON messages between the supervisor and its clients."""

from __future__ import annotations

from msgspec import Struct

from deployer import errors
from deployer.bundle import Bundle
from deployer.journal import Entry, JournalEvent

ALREADY_RUNNING = 3  # the supervisor's exit status if another one holds the state folder


class Address(Struct, frozen=True):
    """What the ingress listens on: a host, its port, and the fixed port of TorchServe, if there is one."""

    host: str
    port: int
    torchserve_port: int | None = None


class RevisionInfo(Struct, frozen=True, kw_only=True):
    """A running TorchServe: its share of the traffic, its process, and its loopback URLs."""

    name: str
    release: str | None
    percent: int
    ready: bool
    reason: str
    pid: int | None
    inference: str | None
    management: str | None
    metrics: str | None
    grpc: str | None = None
    draining: bool = False


class ServiceInfo(Struct, frozen=True, kw_only=True):
    """A service, its Host header, and its TorchServes."""

    namespace: str
    name: str
    host: str
    revisions: tuple[RevisionInfo, ...] = ()


class Info(Struct, frozen=True, kw_only=True):
    """A supervisor and its services. `pid` is None if it is not running.

    `torchserve` is the URL of the fixed port, if there is one.
    """

    state: str
    pid: int | None = None
    ingress: str | None = None
    torchserve: str | None = None
    services: tuple[ServiceInfo, ...] = ()


class Wanted(Struct, frozen=True):
    """A bundle to apply, with its journal entry, and the values of its confidential variables.

    The supervisor keeps the values in memory only.
    """

    bundle: Bundle
    entry: Entry
    expect: int | None = None
    variables: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Wanted({self.bundle.reference}, variables {', '.join(self.variables)})"


class Noted(Struct, frozen=True):
    """An event for a journal entry."""

    number: int
    event: JournalEvent


class Failure(Struct, frozen=True, omit_defaults=True):
    """An error: the name of its class in `deployer.errors`, and its text.

    A supervisor that starts writes one to stdout; without a `kind` it means that the supervisor is ready.
    """

    kind: str = ""
    what: str = ""
    where: str | None = None
    hint: str | None = None

    @classmethod
    def of(cls, error: errors.KdeployError) -> Failure:
        """Return the message for an error."""
        return cls(type(error).__name__, error.what, error.where, error.hint)

    def error(self) -> errors.KdeployError:
        """Return the error of the message."""
        kind: type[errors.KdeployError] = getattr(errors, self.kind, errors.TargetError)
        return kind(self.what, where=self.where, hint=self.hint)
