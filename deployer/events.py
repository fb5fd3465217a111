"""What happens, said as data: the pipeline emits events, a viewer prints them as it likes."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from deployer.observed import Observed


class Warned(Struct, frozen=True, tag=True, tag_field="event"):
    """Something that will hardly work in production, and does not stop the command."""

    message: str


class Noted(Struct, frozen=True, tag=True, tag_field="event"):
    """Something that people should know, and that is as it should be."""

    message: str


class Archiving(Struct, frozen=True, tag=True, tag_field="event"):
    """The model archive is being written: `size` bytes from `files` files."""

    name: str
    files: int
    size: int


class Progressed(Struct, frozen=True, tag=True, tag_field="event"):
    """So many more bytes of the model archive are written."""

    size: int


class Pushed(Struct, frozen=True, tag=True, tag_field="event"):
    """The release is in the model store; `bytes_written` is 0 where it was there before."""

    release: str
    uri: str
    bytes_written: int


class Applying(Struct, frozen=True, tag=True, tag_field="event"):
    """The target is about to get the documents; until `Applied`, some of them may be applied."""

    service: str
    release: str


class Applied(Struct, frozen=True, tag=True, tag_field="event"):
    """The documents were handed to the target."""

    service: str
    release: str


class Unchanged(Struct, frozen=True, tag=True, tag_field="event"):
    """The target serves just this already: nothing was applied."""

    service: str
    release: str


class StatusChanged(Struct, frozen=True, tag=True, tag_field="event"):
    """The service's status is another one now."""

    status: Observed


Event = Warned | Noted | Archiving | Progressed | Pushed | Applying | Applied | Unchanged | StatusChanged
Emit = Callable[[Event], None]
