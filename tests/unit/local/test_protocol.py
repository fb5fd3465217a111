"""What the supervisor and its clients send each other."""

from __future__ import annotations

import msgspec
import pytest

from deployer.errors import ConflictError, DiskFullError, KdeployError, TargetError
from deployer.targets.local.protocol import Failure


@pytest.mark.parametrize("kind", [ConflictError, DiskFullError, TargetError])
def test_an_error_arrives_as_it_was(kind: type[KdeployError]) -> None:
    sent = msgspec.json.encode(Failure.of(kind("what", where="here", hint="do this")))
    error = msgspec.json.decode(sent, type=Failure).error()
    assert (type(error), error.what, error.where, error.hint) == (kind, "what", "here", "do this")


def test_an_error_that_only_the_supervisor_knows_is_one_of_the_target() -> None:
    assert type(Failure(kind="NotRunningError", what="gone").error()) is TargetError
