"""The TorchServe of one revision: starts it, watches it, restarts it when it dies, ends all its processes.

It runs as the container's first process, which reports why a model cannot be loaded and drains TorchServe.
A revision that has never been ready gets one attempt. One that has been ready is restarted as long as it is
required, first immediately and then after growing pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from msgspec import Struct

from deployer.errors import KdeployError
from deployer.load_log import LoadLog
from deployer.targets.local.launch import PIP_LOG, Launch, Ports, plan_launch
from deployer.targets.local.logs import keep_small
from deployer.targets.local.processes import START_MARK, end_marked
from deployer.targets.local.revisions import Revision
from deployer.targets.local.routing import Upstream

STARTING, RUNNING = 0.15, 1.0  # seconds between two probes
PROGRESS_DEADLINE = 600.0  # seconds, as in Knative: installing requirements can take long
RECOVERY_DEADLINE = 120.0  # seconds for TorchServe to replace a dead worker
GRACE = 5.0  # seconds for requests in flight when a service is deleted or the supervisor stops
PORT_TAKEN = 75  # the first process's exit status if another process took a port
_MISSES = 3  # failed probes until a ready TorchServe counts as lost, as in Kubernetes
_PORT_ATTEMPTS = 5
_LONGEST_PAUSE = 60.0
_STEADY = 60.0  # seconds of running after which restarts begin without a pause again
_LOG_TAIL = 1 << 16
_PROBE_TIMEOUT = aiohttp.ClientTimeout(total=4)


class Context(Struct, frozen=True):
    """The values that all TorchServes of a supervisor share."""

    session: aiohttp.ClientSession
    run: Path
    logs: Path
    environment: Mapping[str, str]
    marks: Mapping[str, str]


class TorchServe:
    """Runs a revision until it is stopped; calls `changed` when its readiness or its reason changes."""

    def __init__(
        self,
        revision: Revision,
        context: Context,
        log: Path,
        *,
        proven: bool,
        changed: Callable[[], None],
        recovery: float = RECOVERY_DEADLINE,
    ) -> None:
        self.revision = revision
        self.upstream = Upstream(revision.name)
        self.ports: Ports | None = None
        self.pid: int | None = None
        self.failure = ""
        self.stopping = False
        self._context = context
        self._log = log
        self._proven = proven
        self._recovery = recovery
        self._changed = changed
        self._process: Process | None = None
        self._launch: Launch | None = None
        self._port_taken = False
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(_report)

    def url(self, name: str) -> str | None:
        """Return the URL of one of its ports; None if nothing listens there."""
        if not self.ports or not self._launch or (name == "grpc" and not self._launch.serves_grpc):
            return None
        return f"http://127.0.0.1:{getattr(self.ports, name)}"

    async def drain(self) -> None:
        """End it like a pod: it keeps serving for its drain seconds and answers requests in flight."""
        await self._end(signal.SIGTERM, self._launch.grace if self._launch else GRACE)

    async def stop(self) -> None:
        """End it when no request is in flight, or after GRACE; immediately if it is draining."""
        await self._end(signal.SIGINT, GRACE)

    async def _end(self, number: signal.Signals, grace: float) -> None:
        self.stopping = True
        if self._process is None:
            self._task.cancel()
        else:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
        await asyncio.wait({self._task}, timeout=grace)
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        loop, deaths, taken = asyncio.get_running_loop(), 0, 0
        while True:
            began = loop.time()
            self._port_taken = False
            try:
                reason = await self._live()
            except (KdeployError, OSError) as error:
                reason = _sentence(error)
            if self.stopping:
                return
            taken = taken + 1 if self._port_taken else 0
            if 0 < taken < _PORT_ATTEMPTS:
                continue
            if not self._proven:
                self.failure = self.upstream.reason = reason
                self._changed()
                return
            deaths = 1 if loop.time() - began > _STEADY else deaths + 1
            pause = min(2.0 ** (deaths - 2), _LONGEST_PAUSE) if deaths > 1 else 0.0
            again = f"; restarting in {pause:g} s" if pause else "; restarting"
            self._see(ready=False, reason=reason + again)
            await asyncio.sleep(pause)

    async def _live(self) -> str:
        """Run the process once and return why it ended."""
        start = secrets.token_hex(4)
        temporary = self._context.run / start
        temporary.mkdir(mode=0o700)
        logs = self._log.with_suffix("")
        logs.mkdir(mode=0o700, exist_ok=True)
        (logs / PIP_LOG).unlink(missing_ok=True)
        try:
            ports = _free_ports()
            self._launch = plan_launch(
                self.revision,
                ports=ports,
                temporary=temporary,
                logs=logs,
                environment=self._context.environment,
            )
            self._launch.config_path.write_text(self._launch.properties, "ascii")
            self.upstream.max_request_size = self._launch.max_request_size
            with self._log.open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *self._launch.command,
                    cwd=temporary,
                    env={**self._launch.environment, **self._context.marks, START_MARK: start},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            self.pid, self.ports, self.upstream.port = self._process.pid, ports, ports.inference
            reason = await self._watch(self._process, ports, self._launch)
            self._see(ready=False, reason=reason)
            return reason
        finally:
            self.upstream.ready = False
            self.pid = self.ports = None
            process, self._process = self._process, None
            # Shielded: a stop at this point must not leave processes running.
            await asyncio.shield(_sweep(process, start, temporary))

    async def _watch(self, process: Process, ports: Ports, launch: Launch) -> str:
        loop = asyncio.get_running_loop()
        ended = asyncio.ensure_future(process.wait())
        misses, last_ready, was_ready = 0, loop.time(), False
        while not ended.done():
            if self.stopping:
                await asyncio.wait({ended})
                break
            try:
                missing = await _probe(self._context.session, ports.management, process.pid)
                misses = 0
            except _ProbeError as error:
                missing, misses = str(error) if was_ready else "TorchServe is starting", misses + 1
            if not missing:
                self._proven = was_ready = True
                last_ready = loop.time()
                self._see(ready=True)
                await asyncio.to_thread(keep_small, self._log)
            elif not (self.upstream.ready and 0 < misses < _MISSES):
                self._see(ready=False, reason=self._why(missing) if was_ready else missing)
            patience = self._recovery if was_ready else PROGRESS_DEADLINE
            if loop.time() - last_ready > patience:
                return f"not ready after {patience:g} s: {self.upstream.reason}"
            await asyncio.wait({ended}, timeout=RUNNING if self.upstream.ready else STARTING)
        self._port_taken = ended.result() == PORT_TAKEN
        reason = "" if was_ready else _first_line(launch.message_path)
        return reason or f"TorchServe ended ({_exit(ended.result())})"

    def _why(self, missing: str) -> str:
        """Return why it was lost, by the end of its log; only once, because later lines say less."""
        if not self.upstream.ready:
            return self.upstream.reason
        log = LoadLog()
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            file.seek(max(self._log.stat().st_size - _LOG_TAIL, 0))
            log.feed(file.read().decode("utf-8", "replace"))
        return f"{missing}: {log.reason}" if log.reason else missing

    def _see(self, *, ready: bool, reason: str = "") -> None:
        if (self.upstream.ready, self.upstream.reason) != (ready, reason):
            self.upstream.ready, self.upstream.reason = ready, reason
            self._changed()


class _ProbeError(Exception):
    """The management API does not answer."""


async def _probe(session: aiohttp.ClientSession, port: int, leader: int) -> str:
    """Return why TorchServe is not ready; nothing if it is. Raises _ProbeError.

    The condition is that of the ServingRuntime's readiness probe: `/ping` is healthy while workers die in a
    loop. Workers must be in the session of `leader`, because another TorchServe can have taken the port.
    """
    try:
        models = (await _get(session, port, "/models?limit=1000"))["models"]
        for model in models:
            for version in await _get(session, port, f"/models/{quote(model['modelName'])}"):
                if not any(_serves(worker, leader) for worker in version["workers"]):
                    return f"model {model['modelName']} has no READY worker"
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError, KeyError, TypeError) as error:
        raise _ProbeError("TorchServe's management API does not answer") from error
    return "" if models else "no model is loaded"


def _serves(worker: Mapping[str, Any], leader: int) -> bool:
    pid = worker.get("pid") or 0
    try:
        return worker["status"] == "READY" and (pid <= 0 or os.getsid(pid) == leader)
    except ProcessLookupError:
        return False


async def _get(session: aiohttp.ClientSession, port: int, path: str) -> Any:
    async with session.get(f"http://127.0.0.1:{port}{path}", timeout=_PROBE_TIMEOUT) as answer:
        answer.raise_for_status()
        return await answer.json(content_type=None)


def _free_ports() -> Ports:
    """Return loopback ports that are free now; another process can still take one."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in Ports.__struct_fields__]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return Ports(*(each.getsockname()[1] for each in sockets))


async def _sweep(process: Process | None, start: str, temporary: Path) -> None:
    """End every process with the mark of one start, and remove its temporary folder."""
    await asyncio.to_thread(end_marked, {START_MARK: start})
    if process:
        await process.wait()
    shutil.rmtree(temporary, ignore_errors=True)


def _first_line(path: Path) -> str:
    """Return the first line of a termination message, which is the reason; nothing if there is none."""
    try:
        return path.read_text("utf-8", "replace").partition("\n")[0]
    except OSError:
        return ""


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception():
        context = {"message": "the task of a TorchServe failed", "exception": task.exception()}
        asyncio.get_running_loop().call_exception_handler(context)


def _exit(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _sentence(error: Exception) -> str:
    hint = error.hint if isinstance(error, KdeployError) else None
    return f"{error}; {hint}" if hint else str(error)
