"""The JSON messages between the supervisor and its clients."""

from __future__ import annotations

import msgspec
import pytest

from deployer.errors import ConflictError, DiskFullError, KdeployError, TargetError
from deployer.targets.local.protocol import Failure


@pytest.mark.parametrize("kind", [ConflictError, DiskFullError, TargetError])
def test_an_error_is_decoded_unchanged(kind: type[KdeployError]) -> None:
    sent = msgspec.json.encode(Failure.of(kind("what", where="here", hint="do this")))
    error = msgspec.json.decode(sent, type=Failure).error()
    assert (type(error), error.what, error.where, error.hint) == (kind, "what", "here", "do this")


def test_an_unknown_error_class_becomes_a_target_error() -> None:
    assert type(Failure(kind="NotRunningError", what="gone").error()) is TargetError
