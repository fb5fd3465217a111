"""An upload to S3 that is killed goes on where it stopped, and nothing that arrived is sent again."""

from __future__ import annotations

import os
import random
import re
import time
from collections import Counter
from pathlib import Path

import msgspec
import obstore

from deployer.config import Store
from deployer.store import open_store
from deployer.store.credentials import find_credentials
from deployer.store.location import locate
from deployer.store.s3_multipart import _begin, _uploads, upload
from deployer.store.s3_requests import Bucket
from tests.stores.pushing import Start, start
from tests.stores.swift import Swift

__all__ = ["start"]

ARCHIVE = "model-store/digits.mar"
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
    for trial in range(4):
        config = msgspec.structs.replace(s3_config, uri=f"{s3_config.uri}/{trial}")
        for _ in range(5):
            child = start(config)
            time.sleep(moments.uniform(0, 0.35))
            child.kill()
            child.wait()
            swift.settle()
        assert start(config).wait() == 0
        store = open_store(config, tmp_path)
        (release,) = store.list()
        store.verify(release)
        found = obstore.head(store._objects, f"digits/{release.id}/{ARCHIVE}")
        made.add((release.id, found["size"], found["e_tag"]))
        taken = parts_taken(swift, config)
        assert set(taken) == {str(number) for number in range(1, 15)}
        assert set(taken.values()) == {1}
    assert len(made) == 1


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


def test_two_at_once_make_one_object(s3_config: Store, start: Start, tmp_path: Path) -> None:
    children = [start(s3_config), start(s3_config)]
    assert [child.wait() for child in children] == [0, 0]
    (release,) = open_store(s3_config, tmp_path).list()
    open_store(s3_config, tmp_path).verify(release)
