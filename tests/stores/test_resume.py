"""An upload that is killed goes on where it stopped, and nothing that arrived is sent again."""

from __future__ import annotations

import base64
import os
import random
import re
import time
from collections import Counter
from pathlib import Path

import msgspec
import obstore
import pytest

from deployer.config import Store
from deployer.store import azure_blocks, open_store
from deployer.store.azure_requests import Container
from deployer.store.credentials import find_credentials
from deployer.store.location import locate
from deployer.store.s3_multipart import _begin, _uploads, upload
from deployer.store.s3_requests import Bucket
from tests.stores.azurite import ACCOUNT, Azurite, sas
from tests.stores.pushing import Start, start
from tests.stores.swift import Swift

pytestmark = pytest.mark.long
__all__ = ["start"]

ARCHIVE = "model-store/digits.mar"
_BLOCK = re.compile(r"PUT (\S+)\?comp=block&blockid=([^&\s]+)\S* 201")
_PART = re.compile(r"PUT (\S+)\?partNumber=(\d+)&uploadId=(\S+) 200")


def parts_taken(swift: Swift, config: Store) -> Counter[str]:
    """Count, by number, the parts of one store's archive that the server took."""
    prefix = config.uri.removeprefix("s3:/")
    matches = (_PART.match(line) for line in swift.requests)
    return Counter(match[2] for match in matches if match and match[1].startswith(prefix))


def test_killed_at_twenty_moments_it_is_the_same_object_and_no_part_goes_twice(
    s3_config: Store, swift: Swift, start: Start, tmp_path: Path
) -> None:
    moments = random.Random(20)
    made = set()
    for trial, part in enumerate((5, 5, 7, 16)):  # MiB
        config = msgspec.structs.replace(s3_config, uri=f"{s3_config.uri}/{trial}")
        for _ in range(5):
            child = start(config, part)
            time.sleep(moments.uniform(0, 0.35))
            child.kill()
            child.wait()
            swift.settle()
        assert start(config, part).wait() == 0
        store = open_store(config, tmp_path)
        (release,) = store.list()
        store.verify(release)
        found = obstore.head(store._objects, f"digits/{release.id}/{ARCHIVE}")
        made.add((release.id, found["size"], part, found["e_tag"]))
        taken = parts_taken(swift, config)
        assert set(taken) == {str(number) for number in range(1, -(-70_000_000 // (part << 20)) + 1)}
        assert set(taken.values()) == {1}
    assert len(made) == 3
    assert len({(release_id, size) for release_id, size, *_ in made}) == 1


def test_a_part_whose_bytes_are_others_is_sent_again(swift: Swift, s3_config: Store, tmp_path: Path) -> None:
    path = tmp_path / "archive.mar"
    path.write_bytes(random.Random(3).randbytes(11 << 20))
    bucket = Bucket(locate(s3_config, {}), find_credentials("s3", os.environ), None)
    key = locate(s3_config, {}).key("a.mar")
    upload_id = _begin(bucket, key, {"kdeploydigest": "x"})
    first = bucket.ask("PUT", key, {"partNumber": "1", "uploadId": upload_id}, body=bytes(11 << 20))
    assert first.status == 200
    assert upload(bucket, key, path, {}, replace=False, there=lambda: False) == 11 << 20
    assert bucket.ask("GET", key).content == path.read_bytes()
    assert upload(bucket, key, path, {}, replace=False, there=lambda: True) == 11 << 20
    assert not _uploads(bucket, key)


@pytest.mark.parametrize("cloud", ["s3_config", "azure_config"])
def test_two_at_once_make_one_object(
    cloud: str, start: Start, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = request.getfixturevalue(cloud)
    children = [start(config), start(config)]
    assert [child.wait() for child in children] == [0, 0]
    (release,) = open_store(config, tmp_path).list()
    open_store(config, tmp_path).verify(release)


def blocks_taken(azurite: Azurite, config: Store) -> Counter[str]:
    """Count, by id, the blocks of one store's archive that the server took."""
    matches = (_BLOCK.match(line) for line in azurite.requests)
    prefix = f"/{ACCOUNT}/{config.uri.removeprefix('az://')}/"
    return Counter(match[2] for match in matches if match and match[1].startswith(prefix))


def key_of_the_archive(azurite: Azurite, config: Store) -> str:
    """Return the key that blocks were sent to."""
    start = config.uri.removeprefix("az://models/")
    line = next(line for line in azurite.requests if f"{start}/" in line and ARCHIVE in line)
    return line.split("/models/", 1)[1].split()[0].partition("?")[0]


@pytest.mark.parametrize(("let_in_by", "part"), [("key", 1), ("SAS", 5)])
def test_killed_on_the_way_to_azure_no_block_that_arrived_goes_twice(
    let_in_by: str,
    part: int,
    azure_config: Store,
    azurite: Azurite,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments = random.Random(part)
    for _ in range(4):
        child = start(azure_config, part)
        time.sleep(moments.uniform(0, 0.4))
        child.kill()
        child.wait()
        azurite.settle()
    store = open_store(azure_config, tmp_path)
    container = Container(locate(azure_config, {}), find_credentials("az", os.environ), None)
    arrived = sum(azure_blocks._staged(container, key_of_the_archive(azurite, azure_config)).values())
    arrived += sum(size for _, size in store._paths(""))
    if let_in_by == "SAS":
        monkeypatch.delenv("AZURE_STORAGE_KEY")
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", sas())
    last = start(azure_config, part)
    assert last.wait() == 0
    sent = int(last.stdout.read())
    (release,) = store.list()
    store.verify(release)
    assert 0 < arrived == sum(size for _, size in store._paths(f"digits/{release.id}")) - sent
    assert set(blocks_taken(azurite, azure_config).values()) == {1}


def test_what_obstore_left_in_azure_is_no_hindrance(
    azure_config: Store, start: Start, tmp_path: Path, azurite: Azurite
) -> None:
    (tmp_path / "a.mar").write_bytes(random.Random(3).randbytes(3 << 20))
    container = Container(locate(azure_config, {}), find_credentials("az", os.environ), None)
    key = locate(azure_config, {}).key("a.mar")
    stale = base64.b64encode(b"f" * 32).decode()
    assert container.ask("PUT", key, {"comp": "block", "blockid": stale}, body=b"x").status == 201
    path = tmp_path / "a.mar"
    sent = azure_blocks.upload(container, key, path, {"k": "v"}, replace=False, there=lambda: False)
    assert sent == path.stat().st_size
    # It is there now, and stays as it is.
    path.write_bytes(b"other")
    assert azure_blocks.upload(container, key, path, {}, replace=False, there=lambda: True) == 5
    answer = container.ask("GET", key, {})
    assert answer.content == random.Random(3).randbytes(3 << 20)


def test_a_block_that_was_changed_on_the_way_is_refused(azure_config: Store) -> None:
    container = Container(locate(azure_config, {}), find_credentials("az", os.environ), None)
    digest = base64.b64encode(bytes(16)).decode()
    query = {"comp": "block", "blockid": base64.b64encode(b"f" * 32).decode()}
    answer = container.ask("PUT", "x", query, {"content-md5": digest}, b"x")
    assert (answer.status, b"Md5Mismatch" in answer.content) == (400, True)
