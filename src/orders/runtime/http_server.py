"""An HTTP server: uvicorn, which stops without dropping a request.

It overrides methods of uvicorn.Server and of its HTTP protocol; a test holds them against the installed uvicorn.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# While it drains, the server still answers on open connections, and each answer asks to close its connection. A proxy
# that is about to send on an idle connection would otherwise find it closed, and not know the outcome of a POST.
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
    """A transport that sends the headers of an answer together with its body.

    uvicorn writes them one after the other, and uvloop passes each to the system at once: two calls, two packets, two
    reads in nginx. Measured alone, with an empty handler: nginx 2 to 4 us of CPU a request less (of 27 to 30), a lone
    request 12 % faster, the server's own CPU the same within the noise.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._call_soon = asyncio.get_running_loop().call_soon
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send `data`; keep headers until the body follows or the loop turns."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n"):
            self._head = data
            self._call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Send headers that are kept, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, with one write for each answer and problem documents for invalid requests."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own is
        """Accept a connection."""
        super().connection_made(OneWrite(transport))  # type: ignore[arg-type]  # it has all of a transport's methods

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not a valid request, such as a header with a control character; then close."""
        self.transport.write(NOT_HTTP % (len(NOT_HTTP_PROBLEM), NOT_HTTP_PROBLEM))
        self.transport.close()


class HttpServer(uvicorn.Server):
    """A uvicorn server whose caller handles the signals and calls `stop`.

    `grace_seconds` bounds the time from `stop` to the end, DRAIN_SECONDS included; requests that take longer are
    cancelled. `app` is an ASGI 3 application.
    """

    def __init__(self, app: Any, host: str, port: int, grace_seconds: float) -> None:
        self._stopping = asyncio.Event()
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                loop="uvloop",
                http=Protocol,
                interface="asgi3",  # uvicorn's detection fails if the outermost function is not a coroutine
                ws="none",
                lifespan="on",
                access_log=False,  # nginx writes the access log
                log_config=None,
                server_header=False,
                proxy_headers=False,  # unused here, and a loop over the headers of each request
                timeout_keep_alive=75,  # longer than nginx's, which makes nginx the end that closes
                timeout_graceful_shutdown=max(1, round(grace_seconds - DRAIN_SECONDS)),
                backlog=2048,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the caller."""
        yield

    def _protocol(self) -> asyncio.Protocol:
        return Protocol(self.config, self.server_state, self.lifespan.state)

    def stop(self) -> None:
        """Tell the server to drain and end; return at once."""
        self._stopping.set()

    async def main_loop(self) -> None:
        """Update the Date header once a second until `stop`; uvicorn's own loop wakes ten times a second."""
        while not self._stopping.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DATE_SECONDS):
                    await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new connections, let the open ones finish their requests, then end."""
        # Closing the listener would reset connections that it has not accepted yet, perhaps with a POST on its way.
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
    """Yield the connections that wait at a listening socket at this moment, accepted and non-blocking."""
    with socket.socket(fileno=os.dup(listener.fileno())) as own, contextlib.suppress(OSError):
        own.setblocking(False)
        while True:  # accept raises an OSError once none waits
            conn, _ = own.accept()
            conn.setblocking(False)
            yield conn
