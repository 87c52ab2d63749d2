"""What stands between the socket and aiormq, and takes out the frames that come in thousands.

aiormq makes objects of each frame, by way of two queues and a task: 30 us, and three times that for a message. A sieve
looks at the bytes as they arrive; what its taker does not take goes on to aiormq, untouched.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from yarl import URL

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END = 0xCE

# Takes a frame's kind and payload, and says whether it was for it.
Taker = Callable[[int, bytes], bool]

_start = struct.Struct(">BHI").unpack_from
_START_BYTES = 7

_HEARTBEAT_FRAME = b"\x08\0\0\0\0\0\0\xce"
_TELL_SECONDS = 1.0


class Sieve(asyncio.Protocol):
    """Reads a stream of frames: those of a channel that has a taker are offered to it, all others go on."""

    def __init__(self, behind: asyncio.Protocol) -> None:
        self._behind = behind
        self._takers: dict[int, Taker] = {}
        self._left = b""  # of a frame that is not whole yet
        self._told = 0.0

    def offer(self, channel: int, take: Taker) -> None:
        """Offer the frames of this channel from now on, and of the last one: it may be waiting for its end."""
        self._takers = dict([*list(self._takers.items())[-1:], (channel, take)])

    def data_received(self, data: bytes) -> None:
        """Take out what is taken, and hand on the rest."""
        data = self._left + data
        at, end = 0, len(data)
        others: list[bytes] = []
        taken = False
        while end - at >= _START_BYTES:
            kind, channel, size = _start(data, at)
            after = at + _START_BYTES + size + 1
            if kind not in (METHOD, HEADER, BODY, HEARTBEAT) or (after <= end and data[after - 1] != FRAME_END):
                others.append(data[at:])  # no AMQP at all: aiormq has the words for it
                at = end
                break
            if after > end:
                break
            take = self._takers.get(channel)
            if take is not None and take(kind, data[at + _START_BYTES : after - 1]):
                taken = True
            else:
                others.append(data[at:after])
            at = after
        self._left = data[at:]
        if taken:
            self._tell(others)
        if others:
            self._behind.data_received(b"".join(others))

    def _tell(self, others: list[bytes]) -> None:
        """aiormq takes silence for a lost connection, and the broker sends no heartbeat while it sends something."""
        now = asyncio.get_running_loop().time()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            others.append(_HEARTBEAT_FRAME)

    def eof_received(self) -> bool | None:
        """Hand on what there is of a frame, and the end."""
        self._hand_on_the_rest()
        return self._behind.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Hand on what there is of a frame, and the loss."""
        self._hand_on_the_rest()
        self._behind.connection_lost(exc)

    def _hand_on_the_rest(self) -> None:
        left, self._left = self._left, b""
        if left:
            self._behind.data_received(left)

    def pause_writing(self) -> None:
        """Hand on."""
        self._behind.pause_writing()

    def resume_writing(self) -> None:
        """Hand on."""
        self._behind.resume_writing()


class Wire(TransportFactory):
    """Opens aiormq's connection with a sieve in it, and keeps its transport, so that it can be cut without a word."""

    def __init__(self) -> None:
        self._sieve: Sieve | None = None
        self._transport: asyncio.WriteTransport | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, by TLS for `amqps`; the broker says nothing before we do, so no byte misses the sieve."""
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await factory.create(url, **kwargs)
        self._transport = writer.transport
        behind = writer.transport.get_protocol()
        assert isinstance(behind, asyncio.Protocol)
        self._sieve = Sieve(behind)
        writer.transport.set_protocol(self._sieve)
        return reader, writer

    def offer(self, channel: int, take: Taker) -> None:
        """Offer the frames of this channel to a taker; the connection is open."""
        assert self._sieve is not None
        self._sieve.offer(channel, take)

    def cut(self) -> None:
        """End the connection without a word."""
        if self._transport is not None:
            self._transport.abort()
