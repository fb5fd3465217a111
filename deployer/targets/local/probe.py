"""Readiness, asked of TorchServe's management API: every model has a READY worker.

The same condition as the ServingRuntime's own readiness probe; `/ping` is healthy while workers
die in a loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import aiohttp

_TIMEOUT = aiohttp.ClientTimeout(total=4)


class ProbeError(Exception):
    """The management API does not answer."""


async def probe(session: aiohttp.ClientSession, port: int, leader: int) -> str:
    """Return what is missing for TorchServe to be ready; nothing where it is. Raises ProbeError.

    `leader` leads its session: a port may be another's by now, and that one's workers do not count.
    """
    try:
        models = (await _get(session, port, "/models?limit=1000"))["models"]
        for model in models:
            for version in await _get(session, port, f"/models/{quote(model['modelName'])}"):
                if not any(_serves(worker, leader) for worker in version["workers"]):
                    return f"model {model['modelName']} has no READY worker"
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError, KeyError, TypeError) as error:
        raise ProbeError("TorchServe's management API does not answer") from error
    return "" if models else "no model is loaded"


def _serves(worker: Mapping[str, Any], leader: int) -> bool:
    pid = worker.get("pid") or 0
    try:
        return worker["status"] == "READY" and (pid <= 0 or os.getsid(pid) == leader)
    except ProcessLookupError:
        return False


async def _get(session: aiohttp.ClientSession, port: int, path: str) -> Any:
    async with session.get(f"http://127.0.0.1:{port}{path}", timeout=_TIMEOUT) as answer:
        answer.raise_for_status()
        return await answer.json(content_type=None)
