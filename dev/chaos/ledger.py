"""What was promised, written down outside of the system: append-only files, on disk before anybody acts on them."""

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec


class Intent(msgspec.Struct, frozen=True, tag="intent"):
    """A client is about to ask; written before the first byte is sent."""

    key: str
    number: int  # of the body: the same number is the same body
    at: float


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """What came back; status 0 is no answer at all."""

    key: str
    number: int
    status: int
    order_id: str
    at: float
    detail: str = ""


class Odd(msgspec.Struct, frozen=True, tag="odd"):
    """An answer to a request that is no placement: what was asked, what was expected, what came."""

    what: str
    expected: str
    status: int
    fine: bool
    at: float


class Forgotten(msgspec.Struct, frozen=True, tag="forgotten"):
    """The service let go of this key after its retention; the order it stood for remains."""

    key: str
    order_id: str
    at: float


Entry = Intent | Answer | Odd | Forgotten

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


class Ledger:
    """One file. Many may write at once: whatever waits while the disk is busy is flushed together."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._flushing: asyncio.Task[None] | None = None
        # A thread of its own: faults keep the others busy.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=path.name)

    async def write(self, entry: Any) -> None:
        """Return when the entry is on disk."""
        flushed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((_encode(entry), flushed))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush(), name=f"flush {self.path.name}")
        await flushed

    async def _flush(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            data = b"".join(line + b"\n" for line, _ in waiting)
            await asyncio.get_running_loop().run_in_executor(self._thread, self._to_disk, data)
            for _, flushed in waiting:
                if not flushed.done():
                    flushed.set_result(None)
        self._flushing = None

    def _to_disk(self, data: bytes) -> None:
        os.write(self._file, data)
        os.fdatasync(self._file)

    async def close(self) -> None:
        """Return when all is on disk."""
        if self._flushing is not None:
            await self._flushing
        self._thread.shutdown()
        os.close(self._file)


def read(path: Path) -> Iterator[Entry]:
    """Yield the entries of a file, in the order in which they were written."""
    for line in path.read_bytes().splitlines():
        yield _decode(line)


def now() -> float:
    """The time of every file: one clock, which no fault moves."""
    return time.time()
