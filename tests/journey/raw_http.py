"""HTTP by hand: cheap enough for thousands of requests and streams at once, and free to hang up anywhere."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import msgspec

Answer = tuple[int, dict[str, str], bytes]


class Connection:
    """A connection to one server, opened when it is needed."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        self._host, self._port = parts.hostname, parts.port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """Send a request and return status, headers and body; OSError or EOFError if the connection breaks."""
        await self.send(method, path, body, **headers)
        status, got = await self.head()
        assert self._reader is not None
        answer = await self._reader.readexactly(int(got.get("content-length", 0)))
        if got.get("connection") == "close":
            self.hang_up()
        return status, got, answer

    async def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        """Send a request."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        lines = [f"{method} {path} HTTP/1.1", "Host: shop.example", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read the head of the answer."""
        assert self._reader is not None
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        got = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), got

    async def events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Read the events of a stream, as (id, data), to its end."""
        assert self._reader is not None
        number = ""
        while line := await self._reader.readline():
            if line.startswith(b"id: "):
                number = line[4:].decode().strip()
            elif line.startswith(b"data: "):
                yield number, msgspec.json.decode(line[6:])
            elif line == b"0\r\n":  # the last chunk
                return

    def hang_up(self) -> None:
        """Reset the connection."""
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None
