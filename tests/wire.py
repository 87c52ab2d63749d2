"""A wire between a client and its server that a test can cut, silence, or cut in the middle of an answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

CHUNK_BYTES = 65536


class Wire:
    """A TCP proxy: whoever connects to `port` is connected to the server."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self.port = 0
        self.accepted = 0  # connections so far
        self.swallowed = 0  # answers that got lost
        self._listening: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._is_cut = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._marker: bytes | None = None

    def url(self, url: str) -> str:
        """The same URL, by way of this wire."""
        parts = urlsplit(url)
        credentials, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{credentials}{at}127.0.0.1:{self.port}"))

    def cut(self) -> None:
        """Reset every connection, and each new one at once."""
        self._is_cut = True
        for end in self._ends:
            end.transport.abort()

    def mend(self) -> None:
        """Let new connections through again."""
        self._is_cut = False

    def silence(self) -> None:
        """Keep every connection open, take what is sent, and pass nothing on: a machine that has lost its network."""
        self._flowing.clear()

    def resume(self) -> None:
        """Pass on what was kept, and what follows."""
        self._flowing.set()

    def swallow(self, marker: bytes) -> None:
        """Lose the next answer of the server with these bytes in it, and the connection that it came on."""
        self._marker = marker

    async def __aenter__(self) -> "Wire":
        self._listening = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = self._listening.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._listening is not None
        self._listening.close()
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            their_reader, their_writer = await asyncio.open_connection(*self._server)
        except OSError:
            writer.transport.abort()
            return
        ends = (writer, their_writer)
        self._ends.update(ends)
        for source, sink, is_answer in ((reader, their_writer, False), (their_reader, writer, True)):
            pump = asyncio.create_task(self._pump(source, sink, ends, is_answer), name="wire")
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        is_answer: bool,
    ) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await source.read(CHUNK_BYTES):
                    await self._flowing.wait()
                    if is_answer and self._marker is not None and self._marker in data:
                        self._marker = None
                        self.swallowed += 1
                        return
                    sink.write(data)
                    await sink.drain()
        finally:
            for end in ends:
                end.transport.abort()
                self._ends.discard(end)


@contextlib.asynccontextmanager
async def wire_to(url: str) -> AsyncIterator[Wire]:
    """A wire to the server of a URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with Wire(parts.hostname, parts.port) as wire:
        yield wire
