"""Serves a working folder on this machine: one TorchServe behind the ingress, in this process.

When files change, TorchServe gets a new worker, which takes as long as the imports of the handler. If it has
to read its configuration again, it starts again. The state is that of a local target in its own folder, so
a session that was killed is cleaned up by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import aiohttp

from deployer.bundle import Bundle
from deployer.errors import ConflictError, KdeployError, TargetError
from deployer.events import DevEvent, Loaded, LoadFailed, Loading, Logged
from deployer.load_log import LoadLog
from deployer.observed import Reference
from deployer.targets.local.dev_endpoint import write_endpoint
from deployer.targets.local.ingress import Ingress
from deployer.targets.local.logs import read_lines
from deployer.targets.local.processes import INSTANCE_MARK, STATE_MARK, end_marked
from deployer.targets.local.revisions import Revision, hosts
from deployer.targets.local.routing import Route, Routes
from deployer.targets.local.state import State
from deployer.targets.local.supervisor import sweep
from deployer.targets.local.torchserve import GRACE, Context, TorchServe
from deployer.targets.local.worker_log import handler_line
from deployer.targets.protocols import Endpoint

_PERIOD = 0.1  # seconds between two looks at the files and at the log
_LATE = 0.3  # seconds that a worker's last lines can arrive after TorchServe reports its end


class Change(Protocol):
    """What to serve, and whether TorchServe has to start again for it."""

    @property
    def bundle(self) -> Bundle:
        """The documents."""

    @property
    def names(self) -> tuple[str, ...]:
        """The files that changed."""

    @property
    def restart(self) -> bool:
        """Whether TorchServe reads them only when it starts."""


class Session:
    """Serves what `look` returns, until a signal.

    `look` is called in a thread, and returns None while nothing changes. `failure` returns why the handler of
    a ready worker could not be loaded. `loaded` is called in a thread after each successful load.
    """

    def __init__(
        self,
        folder: Path,
        reference: Reference,
        model: str,
        *,
        look: Callable[[], Change | None],
        failure: Callable[[], str],
        emit: Callable[[DevEvent], None],
        loaded: Callable[[Endpoint], None],
    ) -> None:
        self._state = State(folder)
        self._reference, self._model = reference, model
        self._look, self._failure, self._emit, self._loaded = look, failure, emit, loaded

    def run(self, host: str, port: int, opened: Callable[[Endpoint], None]) -> None:
        """Serve on an address until SIGINT or SIGTERM; call `opened` when the ingress listens.

        Raises ConflictError if another session runs in the folder, and TargetError if it cannot listen.
        """
        self._state.create()
        lock = self._state.acquire()
        if lock is None:
            raise ConflictError(
                "another `kdeploy dev` is running for this project",
                where=str(self._state.lock_path),
                hint=f"Stop it with Ctrl-C, or with `kill {self._state.holder() or 'PID'}`.",
            )
        try:
            asyncio.run(self._run(host, port, opened))
        finally:
            os.close(lock)

    async def _run(self, host: str, port: int, opened: Callable[[Endpoint], None]) -> None:
        await asyncio.to_thread(sweep, self._state)
        async with aiohttp.ClientSession(trust_env=False) as session:
            routes = Routes()
            ingress = Ingress(routes)
            server = _Server(self._state, self._reference, self._model, session, routes, self._emit)
            try:
                await ingress.listen(host, port)
                endpoint = Endpoint(url=ingress.url, host=hosts(self._reference)[0], model=self._model)
                write_endpoint(self._state, self._reference, endpoint)
                opened(endpoint)
                await self._watch(server, endpoint)
            finally:
                await server.close()
                await ingress.close()
                self._state.remove_alias()

    async def _watch(self, server: _Server, endpoint: Endpoint) -> None:
        """Load the files after each change, until a signal. A change during a load starts the load again."""
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        loading: asyncio.Task[None] | None = None
        while not stopped.is_set():
            try:
                change = await asyncio.to_thread(self._look)
            except KdeployError as error:
                self._emit(LoadFailed(error.what, error.where, error.hint))
                change = None
            if change:
                await _cancel(loading)
                loading = asyncio.create_task(self._load(server, change, endpoint))
            server.show_log()
            if loading and loading.done():
                loading.result()
                loading = None
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stopped.wait(), _PERIOD)
        await _cancel(loading)

    async def _load(self, server: _Server, change: Change, endpoint: Endpoint) -> None:
        began = asyncio.get_running_loop().time()
        try:
            await server.load(change)
            if reason := self._failure():
                await server.show_last_lines()
                raise _cannot_load(reason)
        except KdeployError as error:
            self._emit(LoadFailed(error.what, error.where, error.hint))
            return
        self._emit(Loaded(asyncio.get_running_loop().time() - began))
        await asyncio.to_thread(self._loaded, endpoint)


class _Server:
    """The TorchServe of a session, and its log."""

    def __init__(
        self,
        state: State,
        reference: Reference,
        model: str,
        session: aiohttp.ClientSession,
        routes: Routes,
        emit: Callable[[DevEvent], None],
    ) -> None:
        self._reference, self._model, self._session = reference, model, session
        self._routes, self._emit = routes, emit
        self._name = f"{reference.name}-dev"
        self._log = state.log_path(reference, self._name)
        self._log.unlink(missing_ok=True)
        self._position = 0
        self._reasons = LoadLog()
        self._context = Context(
            session=session,
            run=state.run,
            logs=state.logs,
            environment=_environment(os.environ),
            marks={STATE_MARK: str(state.root), INSTANCE_MARK: secrets.token_hex(8)},
        )
        self._torchserve: TorchServe | None = None
        self._changed = asyncio.Event()
        self._must_restart = True

    async def load(self, change: Change) -> None:
        """Serve a change. Raises TargetError if the model cannot be loaded."""
        self._must_restart = self._must_restart or change.restart or self._is_down()
        self._emit(Loading(change.names, self._must_restart))
        self._reasons = LoadLog()
        if self._must_restart:
            await self._restart(change.bundle)
            self._must_restart = False
        else:
            await self._scale(0)
            await self._scale(1)
        await self._wait_until_ready()

    def show_log(self) -> None:
        """Emit the new lines of the log that the handler wrote."""
        data, self._position = read_lines(self._log, self._position)
        self._reasons.feed(data)
        for line in data.splitlines():
            if (shown := handler_line(line)) is not None:
                self._emit(Logged(shown))

    async def show_last_lines(self) -> None:
        """Emit the lines that a worker has written, also those that are not in the log yet."""
        await asyncio.sleep(_LATE)
        self.show_log()

    async def close(self) -> None:
        """End TorchServe and every process that it started."""
        await self._stop()
        await asyncio.to_thread(end_marked, self._context.marks, grace=GRACE)
        self.show_log()

    async def _stop(self) -> None:
        if self._torchserve:
            await self._torchserve.stop()
            self._torchserve = None

    def _is_down(self) -> bool:
        return self._torchserve is None or bool(self._torchserve.failure) or not self._torchserve.ports

    async def _restart(self, bundle: Bundle) -> None:
        await self._stop()
        assert bundle.runtime
        self._torchserve = TorchServe(
            Revision(
                name=self._name,
                release=None,
                predictor=bundle.service["spec"]["predictor"],
                runtime=bundle.runtime["spec"],
            ),
            self._context,
            self._log,
            proven=False,
            changed=self._changed.set,
            recovery=math.inf,  # a handler that cannot be loaded waits for the next change
        )
        self._routes.set(self._reference, Route([(self._torchserve.upstream, 100)]))

    async def _scale(self, workers: int) -> None:
        """Set the number of workers, and wait for them. Raises TargetError if they do not load the model."""
        assert self._torchserve
        url = f"{self._torchserve.url('management')}/models/{self._model}"
        query = {"min_worker": str(workers), "max_worker": str(workers), "synchronous": "true"}
        timeout = aiohttp.ClientTimeout(total=None)
        try:
            async with self._session.put(url, params=query, timeout=timeout) as answer:
                loaded = answer.ok
        except aiohttp.ClientError:
            loaded = False
        if loaded:
            return
        await self.show_last_lines()
        reason = self._reasons.reason
        # TorchServe would try again and again, also with a minimum of no workers.
        await self._stop()
        raise _cannot_load(reason or "TorchServe does not answer")

    async def _wait_until_ready(self) -> None:
        assert self._torchserve
        while not self._torchserve.upstream.ready:
            if self._torchserve.failure:
                await self.show_last_lines()
                raise _cannot_load(self._torchserve.failure)
            await self._changed.wait()
            self._changed.clear()
        self.show_log()


def _cannot_load(reason: str) -> TargetError:
    return TargetError(f"the model cannot be loaded: {reason}")


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Python never uses bytecode of an earlier save in the same second."""
    return {**environment, "PYTHONDONTWRITEBYTECODE": "1"}


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task:
        task.cancel()
        await asyncio.wait({task})
