"""Apis that fail to order: small real HTTP servers, each with a behaviour that a test chooses."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import msgspec


class Request(msgspec.Struct, frozen=True):
    """One request as it came over the wire; `connection` counts from 1."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int

    def all(self, name: str) -> list[str]:
        return [value for header, value in self.headers if header == name.lower()]


# True: the connection stays open for the next request.
Behaviour = Callable[[Request, asyncio.StreamWriter], Awaitable[bool]]


def answer(
    status: int = 200, body: bytes = b"{}", headers: Mapping[str, str] | None = None, *, keep: bool = True
) -> Behaviour:
    """Answer every request the same way."""
    lines = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}

    async def behave(request: Request, writer: asyncio.StreamWriter) -> bool:
        head = f"HTTP/1.1 {status} Whatever\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(head.encode() + b"\r\n" + (b"" if request.method == "HEAD" else body))
        await writer.drain()
        return keep

    return behave


async def hang_up(request: Request, writer: asyncio.StreamWriter) -> bool:
    """Read the whole request, then close the connection: what a process does that dies at its commit."""
    return False


async def hang(request: Request, writer: asyncio.StreamWriter) -> bool:
    """Read the whole request, then say nothing: what a stopped process does."""
    await asyncio.Event().wait()
    return False


def first_then(first: Behaviour, then: Behaviour) -> Behaviour:
    """Do one thing for the first request and another for all later ones."""
    seen = 0

    async def behave(request: Request, writer: asyncio.StreamWriter) -> bool:
        nonlocal seen
        seen += 1
        return await (first if seen == 1 else then)(request, writer)

    return behave


class Upstream:
    """An api on a port of its own, with everything that it was asked."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests: list[Request] = []
        self.connections = 0
        self.address = ""
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._converse(reader, writer, self.connections)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # nginx has given up, or the test is over
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while request := await read_request(reader, number):
            self.requests.append(request)
            if not await self.behaviour(request, writer):
                return

    async def end(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader, connection: int) -> Request | None:
    line = (await reader.readline()).decode("latin-1").strip()
    if not line:
        return None
    method, target, version = line.split(" ", 2)
    headers = []
    while header := (await reader.readline()).decode("latin-1").strip():
        name, _, value = header.partition(":")
        headers.append((name.lower(), value.strip()))
    length = next((int(value) for name, value in headers if name == "content-length"), 0)
    body = await reader.readexactly(length)
    return Request(method, target, version, headers, body, connection)


@asynccontextmanager
async def running(behaviour: Behaviour, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Upstream]:
    """An api that listens as long as this is open."""
    upstream = Upstream(behaviour)
    # The backlog of uvicorn: with a short one the kernel drops connections, and nginx gives them up after 1 s.
    server = await asyncio.start_server(upstream.serve, host, port, backlog=2048)
    upstream.port = server.sockets[0].getsockname()[1]
    upstream.address = f"{host}:{upstream.port}"
    try:
        yield upstream
    finally:
        server.close()
        await upstream.end()
        await server.wait_closed()


@contextmanager
def refusing() -> Iterator[int]:
    """The port of an api that is not there: bound, so that nobody else takes it, but not listening."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
