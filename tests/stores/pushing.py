"""A push in a separate process, which a test can kill, with large weights that do not compress."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from deployer.config import Store

Start = Callable[..., "subprocess.Popen[bytes]"]

_PUSH = """
import sys
from pathlib import Path
import msgspec
from deployer.archive import Archive, DigestCache, Member, write_archive
from deployer.config import Config, Model, Store
from deployer.release import plan_release
from deployer.store.open import open_store
folder = Path(sys.argv[1])
store = open_store(msgspec.json.decode(sys.argv[2], type=Store), folder)
weights = folder / "weights.bin"
member = Member(name="w.pt", size=weights.stat().st_size, sha256=None, source=weights)
archive = Archive(name="digits", version="1.0", format="zip-store", members=(member,))
with store.stage() as staging:
    written = write_archive(archive, staging.archive_path("digits.mar"), DigestCache(folder / "digests.json"))
    release = plan_release(Config(model=Model(name="digits", version="1.0", handler="h")), written)
    print("go", flush=True)
    print(store.put(release, staging).bytes_written, flush=True)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a push of the weights, in several parts.

    It prints `go` when the upload starts, and the number of sent bytes at the end.
    """
    (tmp_path / "weights.bin").write_bytes(random.Random(1).randbytes(70_000_000))
    children: list[subprocess.Popen[bytes]] = []

    def start(config: Store) -> subprocess.Popen[bytes]:
        text = msgspec.json.encode(config).decode()
        command = [sys.executable, "-c", _PUSH, str(tmp_path), text]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"go\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()
