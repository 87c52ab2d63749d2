"""A TCP wire between a client and its server that can be cut, silenced, slowed down, or cut in the middle of an answer.

async with Wire("127.0.0.1", 5432) as wire:
    connect(wire.url(database_url))
    wire.silence()
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator
from typing import Literal, Self
from urllib.parse import urlsplit, urlunsplit

import msgspec

CHUNK_BYTES = 65536
RESET = struct.pack("ii", 1, 0)  # linger for no time: a close is a reset

Way = Literal["there", "back"]


class LinkConditions(msgspec.Struct, frozen=True, kw_only=True):
    """Changes that a wire makes to the bytes that it carries; the default is none."""

    delay: float = 0.0  # seconds that each piece waits
    jitter: float = 0.0  # at most so many seconds more, at random
    bytes_per_second: float = 0.0  # 0 is no limit
    pieces_of: int = 0  # cut the stream into pieces of 1 to so many bytes; 0 leaves it
    closing: float = 0.0  # seconds until the end of the stream is passed on
    silent: frozenset[Way] = frozenset()  # accept bytes and keep them, as a machine that has lost its network


UNCHANGED = LinkConditions()


class Wire:
    """A TCP proxy: whoever connects to `port` is connected to the server."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self.port = 0
        self.accepted = 0  # connections so far
        self.carried = 0  # bytes so far, both ways
        self.cuts = 0  # connections that were cut
        self.swallowed = 0  # answers that got lost
        self._listening: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_cut = False
        self._conditions = UNCHANGED
        self._changed = asyncio.Event()
        self._marker: bytes | None = None
        self._left: dict[Way, int | None] = {"there": None, "back": None}

    def url(self, url: str) -> str:
        """The same URL, by way of this wire."""
        parts = urlsplit(url)
        credentials, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{credentials}{at}127.0.0.1:{self.port}"))

    @property
    def open_ends(self) -> int:
        """How many connections there are, counted at both ends."""
        return len(self._ends)

    def reset(self) -> None:
        """Reset every connection there is; new ones get through."""
        for end in list(self._ends):
            self._abort(end)

    def cut(self) -> None:
        """Reset every connection, and each new one at once."""
        self._is_cut = True
        self.reset()

    def mend(self) -> None:
        """Be an ordinary wire again: what was kept is passed on."""
        self._is_cut = False
        self._marker = None
        self._left = {"there": None, "back": None}
        self.apply(UNCHANGED)

    def apply(self, conditions: LinkConditions) -> None:
        """Treat all bytes under these conditions from now on, those of open connections too."""
        self._conditions = conditions
        self._changed.set()
        self._changed = asyncio.Event()

    def silence(self) -> None:
        """Keep every connection open, take what is sent, and pass nothing on."""
        self.apply(LinkConditions(silent=frozenset({"there", "back"})))

    def resume(self) -> None:
        """Pass on what was kept, and what follows."""
        self.apply(UNCHANGED)

    def swallow(self, marker: bytes | None) -> None:
        """Lose the next answer of the server with these bytes in it, and the connection that it came on; None: none."""
        self._marker = marker

    def cut_after(self, way: Way, count: int) -> None:
        """Reset the connection that carries the last of this many more bytes."""
        self._left[way] = count

    async def __aenter__(self) -> Self:
        self._listening = await asyncio.start_server(self._connect, "127.0.0.1", self.port)
        self.port = self._listening.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._listening is not None
        self._listening.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._is_cut:
            self._abort(writer)
            return
        try:
            their_reader, their_writer = await asyncio.open_connection(*self._server)
        except OSError:
            self._abort(writer)
            return
        ends = (writer, their_writer)
        self._ends.update(ends)
        pumps = (("there", reader, their_writer), ("back", their_reader, writer))
        for way, source, sink in pumps:
            task = asyncio.create_task(self._pump(way, source, sink, ends), name=f"wire {way}")  # type: ignore[arg-type]
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self,
        way: Way,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        try:
            # uvloop's word for a connection that was reset while we waited is RuntimeError.
            with contextlib.suppress(OSError, RuntimeError):
                while data := await source.read(CHUNK_BYTES):
                    if way == "back" and self._marker is not None and self._marker in data:
                        self._marker = None
                        self.swallowed += 1
                        return
                    if not await self._carry(way, data, sink):
                        return
                await asyncio.sleep(self._conditions.closing)
        finally:
            for end in ends:
                self._abort(end)
                self._ends.discard(end)

    async def _carry(self, way: Way, data: bytes, sink: asyncio.StreamWriter) -> bool:
        """Pass bytes on under the conditions; return whether the connection stands afterwards."""
        while data:
            while way in self._conditions.silent:
                await self._changed.wait()
            conditions = self._conditions
            size = random.randint(1, conditions.pieces_of) if conditions.pieces_of else len(data)
            if conditions.bytes_per_second:
                size = min(size, max(1, int(conditions.bytes_per_second / 20)))
            piece, data = data[:size], data[size:]
            if conditions.delay or conditions.jitter:
                await asyncio.sleep(conditions.delay + random.uniform(0, conditions.jitter))
            if conditions.bytes_per_second:
                await asyncio.sleep(len(piece) / conditions.bytes_per_second)
            left = self._left[way]
            if left is not None:
                self._left[way] = left - len(piece) if left > len(piece) else None
                if left <= len(piece):
                    sink.write(piece[:left])
                    with contextlib.suppress(OSError):
                        await sink.drain()
                    self.cuts += 1
                    return False
            sink.write(piece)
            self.carried += len(piece)
            await sink.drain()
            if conditions.pieces_of:
                await asyncio.sleep(0)
        return True

    def _abort(self, end: asyncio.StreamWriter) -> None:
        if end.transport.is_closing():
            return
        self.cuts += 1
        wire = end.get_extra_info("socket")
        with contextlib.suppress(OSError):
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        end.transport.abort()


@contextlib.asynccontextmanager
async def wire_to(url: str) -> AsyncIterator[Wire]:
    """A wire to the server of a URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with Wire(parts.hostname, parts.port) as wire:
        yield wire
