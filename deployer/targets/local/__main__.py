"""The supervisor process: `python -m deployer.targets.local STATE ADDRESS`. Commands start it.

Writes one line of JSON to stdout: that it is ready, or why it cannot start. Its stderr is its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from pathlib import Path

import msgspec

from deployer.errors import KdeployError
from deployer.targets.local.logs import RateLimit
from deployer.targets.local.processes import raise_open_files
from deployer.targets.local.protocol import ALREADY_RUNNING, Address, Failure
from deployer.targets.local.state import State


def main() -> int:
    """Run the supervisor of a state folder, and return an exit status."""
    folder, address = sys.argv[1:]
    state = State(Path(folder))
    handler = logging.StreamHandler()
    handler.addFilter(RateLimit())
    logging.basicConfig(handlers=[handler], format="%(asctime)s %(levelname)s %(message)s")
    raise_open_files()
    try:
        state.create()
        lock = state.acquire()
        if lock is None:
            return ALREADY_RUNNING
        asyncio.run(_supervise(state, lock, msgspec.json.decode(address, type=Address)))
    except KdeployError as error:
        _report(Failure.of(error))
        return 1
    return 0


async def _supervise(state: State, lock: int, address: Address) -> None:
    from deployer.targets.local.api import Api
    from deployer.targets.local.supervisor import Supervisor

    supervisor = Supervisor(state, lock, os.environ)
    api = Api(supervisor)
    try:
        await supervisor.open(address)
        await api.open()
        _report(Failure())
        await supervisor.serve()
    finally:
        await api.close()
        await supervisor.close()


def _report(failure: Failure) -> None:
    with contextlib.suppress(OSError):  # the command that started this process can have been killed
        os.write(1, msgspec.json.encode(failure) + b"\n")
    os.dup2(2, 1)


if __name__ == "__main__":
    sys.exit(main())
