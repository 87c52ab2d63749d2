"""A TCP wire between a relay and a server, which can be cut, or held up without a word."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

CHUNK = 65536


class Wire:
    """Forwards to one server; `url` is the server's URL through it."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._there, self._back = asyncio.Event(), asyncio.Event()
        self.release()
        self._pairs: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = url
        self.cuts = 0

    @property
    def connected(self) -> bool:
        """Whether anybody is connected through it."""
        return bool(self._pairs)

    def cut(self) -> None:
        """Reset every connection there is."""
        self.cuts += 1
        for writer in list(self._pairs):
            writer.transport.abort()

    def hold(self) -> None:
        """Take bytes and pass none on: the other end seems to be there."""
        self._there.clear()
        self._back.clear()

    def hold_answers(self) -> None:
        """Let the server hear, and not be heard."""
        self._back.clear()

    def release(self) -> None:
        """Pass bytes on again."""
        self._there.set()
        self._back.set()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._pairs.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            answers, there = await asyncio.open_connection(self._target.hostname, self._target.port)
            self._pairs.add(there)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, there, self._there), name="wire-there")
                both.create_task(self._carry(answers, writer, self._back), name="wire-back")
        except OSError:
            pass
        finally:
            for end in (writer, there):
                if end is not None:
                    self._pairs.discard(end)
                    end.transport.abort()
            self._tasks.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await flows.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Wire"]:
        """Listen on a port of our own while it is open."""
        server = await asyncio.start_server(self._meet, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        user = self._target.netloc.rpartition("@")[0]
        self.url = urlunsplit(self._target._replace(netloc=f"{user}@127.0.0.1:{port}" if user else f"127.0.0.1:{port}"))
        try:
            yield self
        finally:
            server.close()
            self.release()
            self.cut()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=5)
            await server.wait_closed()
