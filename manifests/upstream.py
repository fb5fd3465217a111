"""The connection from the front to TorchServe: one for each client connection."""

import asyncio

from manifests.http_messages import BadMessageError


class Upstream(asyncio.Protocol):
    """The connection to TorchServe of one client."""

    def __init__(self, client):
        self.client = client
        self.transport = None
        self._waiting = b""
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self):
        try:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: self, "127.0.0.1", self.client.front.upstream_port)
        except OSError as error:
            self.client.lost(error, "TorchServe does not listen: it is starting, or has ended")

    def connection_made(self, transport):
        """Send the bytes that have waited."""
        self.transport = transport
        if self.client is _NO_CLIENT:
            return transport.abort()
        transport.set_write_buffer_limits(high=0)
        return self.client.advance()

    def send(self, data):
        """Add bytes that the next `flush` sends."""
        self._waiting += data

    def flush(self):
        """Send the added bytes in one piece, once there is a connection."""
        if self.transport and self._waiting:
            data, self._waiting = self._waiting, b""
            self.transport.write(data)

    def data_received(self, data):
        """Forward a response."""
        try:
            self.client.answer(data)
        except BadMessageError as error:
            self.transport.abort()
            self.connection_lost(error)

    def pause_writing(self):
        """Pause the client while TorchServe does not read."""
        self.client.block(True)

    def resume_writing(self):
        """Resume the client."""
        self.client.block(False)

    def hold(self, held):
        """Pause or resume reading the response."""
        if self.transport:
            (self.transport.pause_reading if held else self.transport.resume_reading)()

    def connection_lost(self, error):
        """Report the loss to the client's side, once."""
        client, self.client = self.client, _NO_CLIENT
        client.lost(error)

    def abort(self):
        """Close without reporting it: the client has left, or has its response."""
        self.client = _NO_CLIENT
        self._connecting.cancel()
        if self.transport:
            self.transport.abort()


class _NoClient:
    """The client of an aborted connection to TorchServe: ignores every call."""

    def __getattr__(self, _name):
        return lambda *_: None


_NO_CLIENT = _NoClient()
