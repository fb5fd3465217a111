"""The supervisor's HTTP API, on a unix socket that only this user can open."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from deployer.errors import KdeployError
from deployer.observed import Live, Reference
from deployer.targets.local.protocol import Address, Failure, Noted, Wanted
from deployer.targets.local.supervisor import Supervisor

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Api:
    """The HTTP server of one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        app = web.Application(middlewares=[_errors], client_max_size=16 << 20)
        service = "/services/{namespace}/{name}"
        app.add_routes(
            [
                web.get("/info", self._info),
                web.put("/ingress", self._ingress),
                web.post("/stop", self._stop),
                web.get("/services", self._list),
                web.put("/services", self._apply),
                web.get(service, self._get),
                web.delete(service, self._delete),
                web.get(service + "/watch", self._watch),
                web.post(service + "/journal", self._note),
            ]
        )
        # A watch ends when its client disconnects, and does not delay the shutdown.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.5, access_log=None)

    async def open(self) -> None:
        """Listen on the state folder's socket."""
        await self._runner.setup()
        path = self._supervisor.state.socket
        # The socket listens and is private before clients can find it.
        hidden = path.with_name(".opening")
        await web.UnixSite(self._runner, hidden).start()
        hidden.chmod(0o600)
        os.rename(hidden, path)  # noqa: PTH104

    async def close(self) -> None:
        """Stop listening."""
        self._supervisor.state.socket.unlink(missing_ok=True)
        await self._runner.cleanup()

    async def _info(self, _request: web.Request) -> web.Response:
        return _json(self._supervisor.info())

    async def _ingress(self, request: web.Request) -> web.Response:
        await self._supervisor.listen(msgspec.json.decode(await request.read(), type=Address))
        return _json(self._supervisor.info())

    async def _stop(self, _request: web.Request) -> web.Response:
        self._supervisor.stopped.set()
        return _json({"stopping": True})

    async def _list(self, _request: web.Request) -> web.Response:
        return _json([service.observe() for _, service in sorted(self._supervisor.services.items(), key=str)])

    async def _apply(self, request: web.Request) -> web.Response:
        wanted = msgspec.json.decode(await request.read(), type=Wanted)
        return _json(await self._supervisor.apply(wanted))

    async def _get(self, request: web.Request) -> web.Response:
        service = self._supervisor.find(_reference(request))
        return _json(Live(service.document, service.observe()))

    async def _note(self, request: web.Request) -> web.Response:
        noted = msgspec.json.decode(await request.read(), type=Noted)
        self._supervisor.find(_reference(request)).note(noted.number, noted.event)
        return _json({})

    async def _delete(self, request: web.Request) -> web.Response:
        return _json(await self._supervisor.delete(_reference(request)))

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        service = self._supervisor.find(_reference(request))
        response = web.StreamResponse()
        await response.prepare(request)
        async for observed in service.watch(request.query.get("stable")):
            await response.write(msgspec.json.encode(observed) + b"\n")
        return response


def _reference(request: web.Request) -> Reference:
    return Reference(request.match_info["namespace"], request.match_info["name"])


def _json(data: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(data), content_type="application/json")


@web.middleware
async def _errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except KdeployError as error:
        return _json(Failure.of(error), status=400)
