"""Where a running `kdeploy dev` answers, for commands in another terminal."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
from msgspec import Struct

from deployer.observed import Reference
from deployer.targets.local.state import State
from deployer.targets.protocols import Endpoint

FOLDER = "dev"  # of a session, in the state folder of the local target


class _Serving(Struct, frozen=True):
    """The service of a session."""

    reference: Reference
    url: str
    host: str
    model: str


def write_endpoint(state: State, reference: Reference, endpoint: Endpoint) -> None:
    """Write where a session answers. Its process holds the lock of the folder. Raises TargetError."""
    serving = _Serving(reference, endpoint.url, endpoint.host or "", endpoint.model or "")
    state.write(state.ingress_path, msgspec.json.encode(serving))


def find_endpoint(folder: Path, reference: Reference) -> Endpoint | None:
    """Return where the session of a local target answers; None if none runs, or it serves another service."""
    state = State(folder / FOLDER)
    if state.holder() is None:
        return None
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        serving = msgspec.json.decode(state.ingress_path.read_bytes(), type=_Serving)
        if serving.reference == reference:
            return Endpoint(url=serving.url, host=serving.host, model=serving.model)
    return None
