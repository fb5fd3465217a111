"""The supervisor: the process that runs the services of a state folder and their ingress."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
from collections.abc import Mapping
from typing import Annotated

import aiohttp
import msgspec

from deployer.bundle import Bundle
from deployer.errors import NotFoundError, TargetError
from deployer.journal import check_expected
from deployer.observed import Document, Reference
from deployer.targets.local.ingress import Ingress
from deployer.targets.local.logs import keep_small
from deployer.targets.local.processes import INSTANCE_MARK, STATE_MARK, end_marked
from deployer.targets.local.protocol import Address, Info, Wanted
from deployer.targets.local.revisions import Record, append_entry, check_bundle, set_desired
from deployer.targets.local.routing import Routes
from deployer.targets.local.service import Service, now
from deployer.targets.local.state import State
from deployer.targets.local.torchserve import GRACE, Context

_INTERVAL = 1.0  # seconds between two checks of the state folder and the log


class _Listened(msgspec.Struct, frozen=True):
    """The ingress's last port."""

    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0


class Supervisor:
    """Runs the wanted services of a state folder. Its process holds the folder's lock."""

    def __init__(self, state: State, lock: int, environment: Mapping[str, str]) -> None:
        self.state = state
        self.stopped = asyncio.Event()
        self.services: dict[Reference, Service] = {}
        self._deleting: dict[Reference, asyncio.Task[None]] = {}
        self._lock = lock
        self._routes = Routes()
        self.ingress = Ingress(self._routes)
        self.torchserve: Ingress | None = None  # listens on the fixed port of TorchServe, if there is one
        self._session = aiohttp.ClientSession(trust_env=False)  # TorchServe is on loopback: no proxies
        self._context = Context(
            session=self._session,
            run=state.run,
            logs=state.logs,
            environment=environment,
            marks={STATE_MARK: str(state.root), INSTANCE_MARK: secrets.token_hex(8)},
        )

    async def open(self, address: Address) -> None:
        """Clean up after a killed supervisor, listen, and restore the services. Raises TargetError."""
        await asyncio.to_thread(sweep, self.state)
        await self.listen(address)
        for reference, record in self.state.read_records().items():
            self._adopt(reference, record, self._context)

    async def listen(self, address: Address) -> None:
        """Make the ingress listen on an address. Raises TargetError if it cannot."""
        last = _Listened()
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            last = msgspec.json.decode(self.state.ingress_path.read_bytes(), type=_Listened)
        await self.ingress.listen(address.host, address.port, last_port=last.port)
        self.state.write(self.state.ingress_path, msgspec.json.encode(_Listened(self.ingress.port)))
        if self.torchserve and not address.torchserve_port:
            await self.torchserve.close()
            self.torchserve = None
        elif address.torchserve_port:
            self.torchserve = self.torchserve or Ingress(self._routes, any_host=True)
            await self.torchserve.listen(address.host, address.torchserve_port)

    async def serve(self) -> None:
        """Run until a signal, a request to stop, or the removal of the state folder."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopped.set)
        while not self.stopped.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.stopped.wait(), _INTERVAL)
            keep_small(self.state.supervisor_log)
            if not self.state.holds(self._lock):
                break

    async def close(self) -> None:
        """End the ingress and every TorchServe."""
        await self.ingress.close()
        if self.torchserve:
            await self.torchserve.close()
        await asyncio.gather(
            *(service.close() for service in self.services.values()), *self._deleting.values()
        )
        await asyncio.to_thread(end_marked, self._context.marks, grace=GRACE)
        await self._session.close()
        self.state.remove_alias()

    async def apply(self, wanted: Wanted) -> int:
        """Make a bundle the wanted state of its service, and return the number of its entry.

        If a service of that name is being deleted, waits for the end: the revisions and logs of the new one
        have the same names. Raises TargetError or ConflictError, with nothing changed.
        """
        bundle, entry, expect = wanted.bundle, wanted.entry, wanted.expect
        check_bundle(bundle)
        reference = bundle.reference
        while reference in self._deleting:
            await asyncio.wait({self._deleting[reference]})
        known = self.services.get(reference)
        before = known.record if known else None
        check_expected(before.history[-1] if before and before.history else None, expect, str(reference))
        time = now()
        record = set_desired(before, bundle.service, self._runtime(bundle), time)
        record = append_entry(record, entry, time)
        self.state.write_record(record)
        environment = {**self._context.environment, **wanted.variables}
        context = msgspec.structs.replace(self._context, environment=environment)
        if known:
            known.replace(record, context)
        else:
            self._adopt(reference, record, context)
        return record.history[-1].number

    async def delete(self, reference: Reference) -> bool:
        """Delete a service; return False if there was none. Raises TargetError, with nothing changed.

        The deletion completes even if the caller is cancelled.
        """
        if reference not in self.services:
            return False
        self.state.remove_record(reference)
        task = self._deleting[reference] = asyncio.create_task(self.services.pop(reference).delete())
        task.add_done_callback(lambda _: self._deleting.pop(reference))
        await asyncio.shield(task)
        return True

    def find(self, reference: Reference) -> Service:
        """Return a service. Raises NotFoundError."""
        if reference not in self.services:
            raise NotFoundError(f"service {reference} not found", hint="Run `kdeploy list` to list services.")
        return self.services[reference]

    def info(self) -> Info:
        """Return the state of the supervisor and its services."""
        return Info(
            state=str(self.state.root.parent),
            pid=os.getpid(),
            ingress=self.ingress.url,
            torchserve=self.torchserve.url if self.torchserve else None,
            services=tuple(service.info() for _, service in sorted(self.services.items(), key=str)),
        )

    def _adopt(self, reference: Reference, record: Record, context: Context) -> None:
        service = Service(record, self.state, self._routes, context)
        self.services[reference] = service
        service.reconcile()

    def _runtime(self, bundle: Bundle) -> Document:
        """Return the ServingRuntime of a service: from its bundle, or from another service."""
        wanted = bundle.service["spec"]["predictor"]["model"].get("runtime")
        others = [
            s.record.runtime for r, s in self.services.items() if r.namespace == bundle.reference.namespace
        ]
        for runtime in (*([bundle.runtime] if bundle.runtime else []), *others):
            if runtime["metadata"]["name"] == wanted:
                return runtime
        raise TargetError(f"ServingRuntime {wanted} not found", where="predictor.model.runtime")


def sweep(state: State) -> int:
    """End the processes of a killed supervisor, and remove its sockets and temporary files.

    The caller holds the folder's lock. Returns how many processes there were.
    """
    ended = end_marked({STATE_MARK: str(state.root)})
    for path in (state.root / "run").glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return ended
