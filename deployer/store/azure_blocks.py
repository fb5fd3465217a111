"""A large blob comes to Azure in blocks, and a killed upload goes on where it stopped.

A block's id is the MD5 of its bytes, which Azure compares with what arrived; so the uncommitted blocks that
it lists say by themselves what need not be sent again, whoever sent them. Those that nobody commits are gone
after a week.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO
from xml.etree import ElementTree as ET

from deployer.store.azure_requests import Container
from deployer.store.transport import Slice, in_parallel

BLOCK = 16 << 20
_MOST_BLOCKS = 50_000
_ROUNDS = 3  # others may commit other blocks than those that this one counts on


def upload(
    container: Container,
    key: str,
    path: Path,
    metadata: Mapping[str, str],
    *,
    replace: bool,
    there: Callable[[], bool],
) -> int:
    """Upload a file, going on with what has come of it; return the bytes sent.

    `there` tells whether another process has completed it meanwhile; without `replace`, its blob stays.
    Raises StoreError.
    """
    sent = 0
    for _ in range(_ROUNDS):
        with path.open("rb") as file:
            ids, more = _send(container, key, file, path.stat().st_size)
        sent += more
        if _commit(container, key, ids, metadata, replace=replace) or there():
            break
    return sent


def _staged(container: Container, key: str) -> dict[str, int]:
    """Return id and size of the uncommitted blocks; none where there are none, or they may not be listed."""
    answer = container.ask("GET", key, {"comp": "blocklist", "blocklisttype": "uncommitted"})
    if answer.status != 200:
        return {}
    found = ET.fromstring(answer.content)  # noqa: S314 - from the server that the model is entrusted to
    blocks = found.iterfind("UncommittedBlocks/Block")
    return {block.findtext("Name", ""): int(block.findtext("Size", "0")) for block in blocks}


def _send(container: Container, key: str, file: IO[bytes], size: int) -> tuple[list[str], int]:
    """Send the blocks that are not there; return the ids of all, in their order, and the bytes sent."""
    there = _staged(container, key)
    length = max(BLOCK, -(-size // _MOST_BLOCKS))
    stopped = threading.Event()

    def send(number: int) -> tuple[str, int]:
        block = Slice(file, number * length, min(length, size - number * length), stopped)
        digest = block.digest("md5")
        # As long as those that obstore gives, since all blocks of a blob have ids of one length.
        name = base64.b64encode(digest.encode()).decode()
        if there.get(name) == block.size:
            return name, 0
        checked = {"content-md5": base64.b64encode(bytes.fromhex(digest)).decode()}
        answer = container.ask("PUT", key, {"comp": "block", "blockid": name}, checked, block)
        if answer.status != 201:
            raise container.refused("the upload stopped", key, answer)
        return name, block.size

    done = in_parallel(range(-(-size // length)), send, stopped)
    return [name for name, _ in done], sum(count for _, count in done)


def _commit(
    container: Container, key: str, ids: list[str], metadata: Mapping[str, str], *, replace: bool
) -> bool:
    """Make the blocks one blob; False if some of them are gone, and with them, perhaps, the need for it."""
    body = f"<BlockList>{''.join(f'<Latest>{name}</Latest>' for name in ids)}</BlockList>".encode()
    headers = {f"x-ms-meta-{name}": value for name, value in metadata.items()}
    if not replace:
        headers["if-none-match"] = "*"
    answer = container.ask("PUT", key, {"comp": "blocklist"}, headers, body)
    if answer.status == 400 and b"InvalidBlockList" in answer.content:
        return False
    if b"BlobAlreadyExists" in answer.content or b"ConditionNotMet" in answer.content:
        return True  # another one was faster
    if answer.status != 201:
        raise container.refused("the upload cannot be completed", key, answer)
    return True
