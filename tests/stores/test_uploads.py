"""Uploads of a large archive: interrupted, killed, by two processes, and with bounded memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from deployer.config import Store
from deployer.store.open import open_store
from tests.stores.pushing import Start, start
from tests.stores.swift import Swift

pytestmark = pytest.mark.long
__all__ = ["start"]


def uploads(swift: Swift, config: Store) -> list[str]:
    """Return the keys of the incomplete uploads below a store's prefix."""
    prefix = config.uri.removeprefix("s3://models/")
    found = swift.client().list_multipart_uploads(Bucket="models", Prefix=prefix)
    return [upload["Key"] for upload in found.get("Uploads", [])]


def wait_for_upload(swift: Swift, config: Store) -> None:
    deadline = time.monotonic() + 60
    while not uploads(swift, config):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_interrupted_upload_leaves_no_parts(
    s3_config: Store, swift: Swift, start: Start, tmp_path: Path
) -> None:
    child = start(s3_config)
    wait_for_upload(swift, s3_config)
    child.send_signal(signal.SIGINT)
    assert child.wait() == -signal.SIGINT
    assert uploads(swift, s3_config) == []
    assert open_store(s3_config, tmp_path).releases() == []


def test_a_killed_push_can_be_repeated(s3_config: Store, swift: Swift, start: Start, tmp_path: Path) -> None:
    child = start(s3_config)
    wait_for_upload(swift, s3_config)
    child.kill()
    child.wait()
    store = open_store(s3_config, tmp_path)
    assert store.releases() == []
    assert start(s3_config).wait() == 0
    (release,) = store.releases()
    store.verify(release)


@pytest.mark.parametrize("cloud", ["s3_config", "azure_config"])
def test_two_concurrent_pushes_create_one_object(
    cloud: str, start: Start, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = request.getfixturevalue(cloud)
    children = [start(config), start(config)]
    assert [child.wait() for child in children] == [0, 0]
    (release,) = open_store(config, tmp_path).releases()
    open_store(config, tmp_path).verify(release)


MEASURE = """
import resource, sys
from pathlib import Path
import msgspec
from deployer.config import Store
from deployer.store.open import open_store
store = open_store(msgspec.json.decode(sys.argv[1], type=Store), Path(sys.argv[2]))
small, large = Path(sys.argv[2], "small"), Path(sys.argv[2], "large")
peaks = []
for file in (small, large):
    store._put_file(f"digits/x/{file.name}", file, file.name)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[1] - peaks[0]) * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.parametrize("cloud", ["s3_config", "azure_config"])
def test_the_memory_of_an_upload_is_bounded(
    cloud: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for name, size in (("small", 1), ("large", 160 << 20)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    text = msgspec.json.encode(request.getfixturevalue(cloud)).decode()
    command = [sys.executable, "-c", MEASURE, text, str(tmp_path)]
    more = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert more < 60_000_000
