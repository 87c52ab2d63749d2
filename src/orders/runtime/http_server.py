"""Serve HTTP with uvicorn, and stop without dropping a request."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# While it drains, the server answers on the connections that are open and asks for each to be closed after its answer.
# A proxy that is just about to send on an idle one would else find it closed, and could not know what became of a POST.
DRAIN_SECONDS = 1.0
DATE_SECONDS = 1.0

NOT_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n"
    b"connection: close\r\n\r\n%b"
)
NOT_HTTP_PROBLEM = (
    b'{"type":"about:blank","title":"Bad Request","status":400,"detail":"The request is not valid HTTP/1.1."}'
)


class OneWrite:
    """A transport that sends the head of an answer together with the body behind it.

    uvicorn writes them one after the other, and uvloop hands each to the system at once: two calls, two packets, two
    reads for nginx.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._call_soon = asyncio.get_running_loop().call_soon
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send `data`, or keep it, if it is a head, until its body comes or the loop turns."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n"):
            self._head = data
            self._call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Send what is kept, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)


class Protocol(HttpToolsProtocol):
    """uvicorn's, whose own answer to what is no HTTP is a problem document too."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own is
        """Take a connection."""
        super().connection_made(OneWrite(transport))  # type: ignore[arg-type]  # it has all of a transport's methods

    def send_400_response(self, msg: str) -> None:
        """Answer what never becomes a request, such as a header with a control character in it."""
        self.transport.write(NOT_HTTP % (len(NOT_HTTP_PROBLEM), NOT_HTTP_PROBLEM))
        self.transport.close()


class HttpServer(uvicorn.Server):
    """uvicorn, whose owner handles the signals."""

    def __init__(self, app: Any, host: str, port: int, grace_seconds: float) -> None:
        self._stopping = asyncio.Event()
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                loop="uvloop",
                http=Protocol,
                interface="asgi3",  # also where the outermost function is no coroutine
                ws="none",
                lifespan="on",
                access_log=False,  # nginx writes one
                log_config=None,
                server_header=False,
                proxy_headers=False,  # nobody asks who the client is; it costs each request a walk over its headers
                timeout_keep_alive=75,  # longer than nginx keeps its own end open: it is nginx that closes
                timeout_graceful_shutdown=max(1, round(grace_seconds - DRAIN_SECONDS)),
                backlog=2048,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to whoever runs this server."""
        yield

    def _protocol(self) -> asyncio.Protocol:
        return Protocol(self.config, self.server_state, self.lifespan.state)

    def stop(self) -> None:
        """Ask the server to drain and end."""
        self._stopping.set()

    async def main_loop(self) -> None:
        """Keep the Date header right until told to stop; uvicorn's own looks ten times a second whether it is."""
        while not self._stopping.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DATE_SECONDS):
                    await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new connections, let the open ones run dry, then end."""
        # Whoever has connected, but was not accepted yet, would be reset, perhaps with a POST on its way.
        late = [conn for server in self.servers for listener in server.sockets for conn in waiting_at(listener)]
        for server in self.servers:
            server.close()
        for conn in late:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, conn)
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while self.server_state.connections:  # noqa: ASYNC110  # uvicorn offers no event for it
                    await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def waiting_at(listener: Any) -> Iterator[socket.socket]:
    """Accept whoever waits at a listening socket at this moment."""
    with socket.socket(fileno=os.dup(listener.fileno())) as own, contextlib.suppress(OSError):
        own.setblocking(False)
        while True:  # until nobody waits, which is an OSError
            conn, _ = own.accept()
            conn.setblocking(False)
            yield conn
