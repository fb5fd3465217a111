"""The events of a command, as data. A viewer prints them; a Python program can collect them."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from deployer.observed import Observed


class Warned(Struct, frozen=True):
    """A warning: the command continues."""

    message: str


class Noted(Struct, frozen=True):
    """A note: nothing is wrong."""

    message: str


class Archiving(Struct, frozen=True):
    """Writing a model archive of `size` bytes from a number of files."""

    name: str
    files: int
    size: int


class Progressed(Struct, frozen=True):
    """Another `size` bytes of the model archive are written."""

    size: int


class Pushed(Struct, frozen=True):
    """The release is in the model store. `bytes_written` is 0 if it was stored before."""

    release: str
    uri: str
    bytes_written: int


class Applying(Struct, frozen=True):
    """Applying the documents: until `Applied`, some of them can be applied."""

    service: str
    release: str


class Applied(Struct, frozen=True):
    """The documents are applied."""

    service: str
    release: str


class Unchanged(Struct, frozen=True):
    """The service is Ready with this release and its settings: nothing was applied."""

    service: str
    release: str


class StatusChanged(Struct, frozen=True):
    """The status of the service changed."""

    status: Observed


class Loading(Struct, frozen=True):
    """TorchServe loads the working folder; `names` are the files that changed.

    `restart`: TorchServe starts again, else only its worker.
    """

    names: tuple[str, ...]
    restart: bool


class Loaded(Struct, frozen=True):
    """The working folder is served; loading it took `seconds`."""

    seconds: float


class LoadFailed(Struct, frozen=True):
    """The working folder cannot be served until it changes."""

    what: str
    where: str | None = None
    hint: str | None = None


class Logged(Struct, frozen=True):
    """A line that the handler or TorchServe wrote."""

    line: str


Event = Warned | Noted | Archiving | Progressed | Pushed | Applying | Applied | Unchanged | StatusChanged
DevEvent = Warned | Loading | Loaded | LoadFailed | Logged
Emit = Callable[[Event], None]
