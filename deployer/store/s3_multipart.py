"""A large object comes to S3 in parts, and a killed upload goes on where it stopped.

What was begun is known to the server alone: the uploads of the key are listed, then the parts of the newest,
and a part is trusted if its size and MD5 are those of the file's range. Where its ETag is no MD5, as with
keys of KMS, it is sent again. Whoever uploads the same key at the same time adds to the same upload.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO
from xml.etree import ElementTree as ET

from deployer.store.s3_requests import Bucket
from deployer.store.transport import Answer, Slice, in_parallel

PART = 16 << 20
_MOST_PARTS = 10_000
_ROUNDS = 3  # others may complete or abort the upload that this one adds to


def upload(
    bucket: Bucket,
    key: str,
    path: Path,
    metadata: Mapping[str, str],
    *,
    replace: bool,
    there: Callable[[], bool],
) -> int:
    """Upload a file, going on with what has come of it; return the bytes sent.

    `there` tells whether another process has completed it meanwhile; without `replace`, its object stays.
    Raises StoreError.
    """
    sent = 0
    for _ in range(_ROUNDS):
        upload_id = _begun(bucket, key) or _begin(bucket, key, metadata)
        with path.open("rb") as file:
            etags, more = _send(bucket, key, upload_id, file, path.stat().st_size)
        sent += more
        if (etags and _complete(bucket, key, upload_id, etags, replace=replace)) or there():
            break
    return sent


def abort_uploads(bucket: Bucket, prefix: str) -> None:
    """Give up every upload below a prefix; what has come of them costs nobody anything any more."""
    for key, upload_id in _uploads(bucket, prefix):
        bucket.ask("DELETE", key, {"uploadId": upload_id})


def _begun(bucket: Bucket, key: str) -> str | None:
    """Return the newest upload of a key."""
    return next((upload_id for name, upload_id in _uploads(bucket, key) if name == key), None)


def _uploads(bucket: Bucket, prefix: str) -> list[tuple[str, str]]:
    """Return key and id of the uploads below a prefix, the newest first; none where that may not be asked."""
    answer = bucket.ask("GET", query={"uploads": "", "prefix": prefix})
    if answer.status != 200:
        return []
    found = [
        (_text(item, "Initiated"), _text(item, "Key"), _text(item, "UploadId"))
        for item in _elements(answer, "Upload")
    ]
    return [(key, upload_id) for _, key, upload_id in sorted(found, reverse=True)]


def _begin(bucket: Bucket, key: str, metadata: Mapping[str, str]) -> str:
    headers = {f"x-amz-meta-{name}": value for name, value in metadata.items()}
    answer = bucket.ask("POST", key, {"uploads": ""}, headers)
    if answer.status != 200:
        raise bucket.refused("the upload cannot begin", key, answer)
    return _text(_root(answer), "UploadId")


def _parts(bucket: Bucket, key: str, upload_id: str) -> Iterator[tuple[int, tuple[int, str]]]:
    """Yield number, size and ETag of the parts that are there; none where that may not be asked."""
    marker = "0"
    while marker:
        answer = bucket.ask("GET", key, {"uploadId": upload_id, "part-number-marker": marker})
        if answer.status != 200:
            return
        for item in _elements(answer, "Part"):
            yield int(_text(item, "PartNumber")), (int(_text(item, "Size")), _text(item, "ETag").strip('"'))
        more = _text(_root(answer), "IsTruncated") == "true"
        marker = _text(_root(answer), "NextPartNumberMarker") if more else ""


def _send(bucket: Bucket, key: str, upload_id: str, file: IO[bytes], size: int) -> tuple[list[str], int]:
    """Send the parts that are not there.

    Returns the ETags of all parts, or none if the upload is gone, and the bytes sent.
    """
    there = dict(_parts(bucket, key, upload_id))
    length = max(PART, -(-size // _MOST_PARTS))
    stopped = threading.Event()

    def send(number: int) -> tuple[str | None, int]:
        start = (number - 1) * length
        part = Slice(file, start, min(length, size - start), stopped)
        known = there.get(number)
        if known and known[0] == part.size and known[1] == part.digest("md5"):
            return known[1], 0
        answer = bucket.ask("PUT", key, {"partNumber": str(number), "uploadId": upload_id}, body=part)
        if answer.status == 404 and b"NoSuchUpload" in answer.content:
            return None, 0
        if answer.status != 200:
            raise bucket.refused("the upload stopped", key, answer)
        return answer.etag, part.size

    done = in_parallel(range(1, -(-size // length) + 1), send, stopped)
    etags = [etag for etag, _ in done if etag]
    return (etags if len(etags) == len(done) else []), sum(count for _, count in done)


def _complete(bucket: Bucket, key: str, upload_id: str, etags: list[str], *, replace: bool) -> bool:
    """Make the parts one object; False if the upload is gone, and with it, perhaps, the need for it."""
    parts = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{etag}&quot;</ETag></Part>"
        for number, etag in enumerate(etags, 1)
    )
    body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
    headers = {} if replace else {"if-none-match": "*"}
    answer = bucket.ask("POST", key, {"uploadId": upload_id}, headers, body)
    if answer.status == 404 and b"NoSuchUpload" in answer.content:
        return False
    if answer.status == 412:  # another one was faster
        abort_uploads(bucket, key)
        return True
    if answer.status != 200 or b"<Error>" in answer.content:
        raise bucket.refused("the upload cannot be completed", key, answer)
    return True


def _root(answer: Answer) -> ET.Element:
    return ET.fromstring(answer.content)  # noqa: S314 - from the server that the model is entrusted to


def _elements(answer: Answer, name: str) -> Iterator[ET.Element]:
    return (item for item in _root(answer).iter() if item.tag.rpartition("}")[2] == name)


def _text(item: ET.Element, name: str) -> str:
    return next((child.text or "" for child in item if child.tag.rpartition("}")[2] == name), "")
