"""One revision's TorchServe: started, watched, started again when it dies, and ended whole.

A revision that has never been ready gets one chance, and says why it failed; one that has been
ready is started again for as long as it is wanted, at once and then after growing pauses.
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

import aiohttp
from msgspec import Struct

from deployer.errors import KdeployError
from deployer.targets.local.diagnosis import LoadLog, pip_errors
from deployer.targets.local.launch import PIP_LOG, Ports, plan_launch
from deployer.targets.local.probe import ProbeError, probe
from deployer.targets.local.processes import START_MARK, end_marked, signal_group
from deployer.targets.local.revisions import Revision
from deployer.targets.local.routing import Upstream, max_request_size

STARTING, RUNNING = 0.15, 1.0  # seconds between two probes
PROGRESS_DEADLINE = 600.0  # Knative's: a requirements file may bring much
RECOVERY_DEADLINE = 120.0  # a worker that TorchServe has not brought back by then, it never will
GRACE = 5.0  # seconds that TorchServe gets to end by itself
_MISSES = 3  # unanswered probes until a ready TorchServe counts as lost, as in Kubernetes
_PORT_ATTEMPTS = 5
_LONGEST_PAUSE = 60.0
_STEADY = 60.0  # seconds ready after which the next death is a first one again
_LOG_MAX = 8 << 20
_LOG_TAIL = 1 << 16


class Surroundings(Struct, frozen=True):
    """What every TorchServe of a supervisor shares."""

    session: aiohttp.ClientSession
    run: Path
    logs: Path
    environment: Mapping[str, str]
    marks: Mapping[str, str]


class TorchServe:
    """Runs a revision until it is stopped; `changed` is called after every change of what is seen."""

    def __init__(
        self,
        revision: Revision,
        surroundings: Surroundings,
        log: Path,
        *,
        proven: bool,
        changed: Callable[[], None],
    ) -> None:
        self.revision = revision
        self.upstream = Upstream(revision.name)
        self.ports: Ports | None = None
        self.pid: int | None = None
        self.failure = ""
        self.stopping = False
        self._around = surroundings
        self._log = log
        self._proven = proven
        self._changed = changed
        self._grace = 0.0
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(_report)

    async def stop(self) -> None:
        """End the process and everything that it has started."""
        if not self.stopping:
            self.stopping = True
            self._grace = GRACE
            self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        loop, deaths, taken = asyncio.get_running_loop(), 0, 0
        while True:
            began = loop.time()
            log = LoadLog()
            try:
                reason = await self._live(log)
            except (KdeployError, OSError) as error:
                reason = _sentence(error)
            taken = taken + 1 if log.port_taken else 0
            if 0 < taken < _PORT_ATTEMPTS:
                continue
            if not self._proven:
                self.failure = self.upstream.reason = reason
                self._changed()
                return
            deaths = 1 if loop.time() - began > _STEADY else deaths + 1
            pause = min(2.0 ** (deaths - 2), _LONGEST_PAUSE) if deaths > 1 else 0.0
            again = f"; it is started again in {pause:g} s" if pause else "; it is being started again"
            self._see(ready=False, reason=reason + again)
            await asyncio.sleep(pause)

    async def _live(self, log: LoadLog) -> str:
        """Go through one life of the process, and return why it ended."""
        start = secrets.token_hex(4)
        temporary = self._around.run / start
        temporary.mkdir(mode=0o700)
        logs = self._log.with_suffix("")
        logs.mkdir(mode=0o700, exist_ok=True)
        (logs / PIP_LOG).unlink(missing_ok=True)
        process: Process | None = None
        try:
            ports = _free_ports()
            launch = plan_launch(
                self.revision,
                ports=ports,
                temporary=temporary,
                logs=logs,
                environment=self._around.environment,
            )
            self.upstream.max_request_size = max_request_size(launch.properties)
            launch.config_path.write_text(launch.properties, "ascii")
            with self._log.open("ab") as output:
                position = output.tell()
                process = await asyncio.create_subprocess_exec(
                    *launch.command,
                    cwd=temporary,
                    env={**launch.environment, **self._around.marks, START_MARK: start},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            self.pid, self.ports, self.upstream.port = process.pid, ports, ports.inference
            reason = await self._watch(process, ports, log, position)
            self._see(ready=False, reason=reason)
            return reason
        finally:
            self.upstream.ready = False
            self.pid = self.ports = None
            # To be stopped meanwhile is no reason to leave half of it behind.
            await asyncio.shield(self._end(process, start, temporary))

    async def _end(self, process: Process | None, start: str, temporary: Path) -> None:
        if process and not self._grace:
            signal_group(process.pid, signal.SIGKILL)
        # Whoever left the group is found by its mark.
        await asyncio.to_thread(end_marked, {START_MARK: start}, grace=self._grace)
        if process:
            await process.wait()
        shutil.rmtree(temporary, ignore_errors=True)

    async def _watch(self, process: Process, ports: Ports, log: LoadLog, position: int) -> str:
        loop = asyncio.get_running_loop()
        ended = asyncio.ensure_future(process.wait())
        misses, last_ready, was_ready = 0, loop.time(), False
        while not ended.done():
            try:
                missing, misses = await self._probe(process, ports), 0
            except ProbeError as error:
                missing, misses = str(error) if was_ready else "TorchServe is starting", misses + 1
            if not missing:
                self._proven = was_ready = True
                last_ready = loop.time()
                self._see(ready=True)
                await self._rotate_log()
            elif not (self.upstream.ready and 0 < misses < _MISSES):
                if not was_ready:
                    position = self._read_log(log, position)
                    if log.failure or log.port_taken:
                        return self._failure(log) or "a port was taken"
                self._see(ready=False, reason=self._why(log, missing, was_ready=was_ready))
            patience = RECOVERY_DEADLINE if was_ready else PROGRESS_DEADLINE
            if loop.time() - last_ready > patience:
                return f"not ready after {patience:g} s: {self.upstream.reason}"
            await asyncio.wait({ended}, timeout=RUNNING if self.upstream.ready else STARTING)
        if not was_ready:
            self._read_log(log, position)
            return self._failure(log) or f"TorchServe ended: {log.last_words}"
        return f"TorchServe ended ({_exit(ended.result())})"

    async def _probe(self, process: Process, ports: Ports) -> str:
        return await probe(self._around.session, ports.management, process.pid)

    def _why(self, log: LoadLog, missing: str, *, was_ready: bool) -> str:
        if was_ready and not self.upstream.ready:
            return self.upstream.reason
        if was_ready:
            log = LoadLog()
            self._read_log(log, max(self._log.stat().st_size - _LOG_TAIL, 0))
        return f"{missing}: {log.reason}" if log.reason else missing

    def _failure(self, log: LoadLog) -> str:
        pip_log = self._log.with_suffix("") / PIP_LOG
        if log.pip_failed and pip_log.is_file():
            said = pip_errors(pip_log.read_text("utf-8", "replace"))[-3:]
            return "; ".join([log.failure, *(line for line in said if line not in log.failure)])
        return log.failure

    def _see(self, *, ready: bool, reason: str = "") -> None:
        if (self.upstream.ready, self.upstream.reason) != (ready, reason):
            self.upstream.ready, self.upstream.reason = ready, reason
            self._changed()

    def _read_log(self, log: LoadLog, position: int) -> int:
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            file.seek(position)
            data = file.read()
            log.feed(data.decode("utf-8", "replace"))
            return position + len(data)
        return position

    async def _rotate_log(self) -> None:
        """Keep the log bounded: the process appends to the same file, so that is emptied in place."""
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > _LOG_MAX:
                await asyncio.to_thread(shutil.copyfile, self._log, self._log.with_suffix(".log.1"))
                os.truncate(self._log, 0)


def _free_ports() -> Ports:
    """Return loopback ports that are free now; somebody may still be quicker to take one."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in Ports.__struct_fields__]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return Ports(*(one.getsockname()[1] for one in sockets))


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception():
        context = {"message": "a TorchServe's watcher ended", "exception": task.exception()}
        asyncio.get_running_loop().call_exception_handler(context)


def _exit(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _sentence(error: Exception) -> str:
    hint = error.hint if isinstance(error, KdeployError) else None
    return f"{error}; {hint}" if hint else str(error)
