"""A protocol between the socket and aiormq that takes out the frames which arrive in thousands.

aiormq turns each frame into objects and passes them through two queues and a task: 30 us a frame, and three times that
for a message. The frame filter reads the bytes as they arrive. Frames that no handler takes go on to aiormq, unchanged.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from yarl import URL

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END = 0xCE
REFUSED = (403, 530)  # a wrong password; a vhost that is missing, or not open to this user

# Gets a frame's kind and payload; returns whether it took the frame.
FrameHandler = Callable[[int, bytes], bool]

_CONNECTION_CLOSE = b"\0\x0a\0\x32"  # class and method id

_start = struct.Struct(">BHI").unpack_from
_short = struct.Struct(">H").unpack_from
_START_BYTES = 7

_HEARTBEAT_FRAME = b"\x08\0\0\0\0\0\0\xce"
_HEARTBEAT_SECONDS = 1.0


class FrameFilter(asyncio.Protocol):
    """Splits a stream into frames: a frame of a registered channel goes to its handler first, the rest to aiormq."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self.closed: tuple[int, str] | None = None  # reply code and text with which the broker closed the connection
        self._inner = inner
        self._handlers: dict[int, FrameHandler] = {}  # by channel
        self._rest = b""  # the start of a frame that is not complete yet
        self._last_heartbeat = 0.0  # by the event loop's clock, in seconds

    def register(self, channel: int, handle: FrameHandler) -> None:
        """Pass the frames of this channel to `handle` first.

        The channel registered before keeps its handler, since it may still wait for its end; earlier ones lose theirs.
        """
        self._handlers = dict([*list(self._handlers.items())[-1:], (channel, handle)])

    def data_received(self, data: bytes) -> None:
        """Give each complete frame to its handler; pass the others on to aiormq."""
        data = self._rest + data
        at, end = 0, len(data)
        others: list[bytes] = []
        taken = False
        while end - at >= _START_BYTES:
            kind, channel, size = _start(data, at)
            after = at + _START_BYTES + size + 1
            if kind not in (METHOD, HEADER, BODY, HEARTBEAT) or (after <= end and data[after - 1] != FRAME_END):
                others.append(data[at:])  # not AMQP: aiormq reports the error
                at = end
                break
            if after > end:
                break
            handle = self._handlers.get(channel)
            if handle is not None and handle(kind, data[at + _START_BYTES : after - 1]):
                taken = True
            else:
                if kind == METHOD and data.startswith(_CONNECTION_CLOSE, at + _START_BYTES):
                    self.closed = _read_close(data[at + _START_BYTES : after - 1])
                others.append(data[at:after])
            at = after
        self._rest = data[at:]
        if taken:
            self._add_heartbeat(others)
        if others:
            self._inner.data_received(b"".join(others))

    def _add_heartbeat(self, others: list[bytes]) -> None:
        """Tell aiormq once a second that the connection lives.

        aiormq takes silence for a lost connection, and the broker sends no heartbeats while it sends other frames.
        """
        now = asyncio.get_running_loop().time()
        if now - self._last_heartbeat >= _HEARTBEAT_SECONDS:
            self._last_heartbeat = now
            others.append(_HEARTBEAT_FRAME)

    def eof_received(self) -> bool | None:
        """Pass on an incomplete frame, and the end of the stream."""
        self._pass_on_rest()
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on an incomplete frame, and the loss of the connection."""
        self._pass_on_rest()
        self._inner.connection_lost(exc)

    def _pass_on_rest(self) -> None:
        rest, self._rest = self._rest, b""
        if rest:
            self._inner.data_received(rest)

    def pause_writing(self) -> None:
        """Pass on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass on."""
        self._inner.resume_writing()


def _read_close(method: bytes) -> tuple[int, str]:
    (code,) = _short(method, 4)
    return code, method[7 : 7 + method[6]].decode(errors="replace")


class FilteredTransport(TransportFactory):
    """Opens aiormq's connection through a frame filter, and keeps its transport, so that `cut` can abort it."""

    def __init__(self) -> None:
        self._filter: FrameFilter | None = None
        self._transport: asyncio.WriteTransport | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, by TLS for `amqps`. The broker waits for the first byte of its client: none passes the filter by."""
        self._filter = None
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await factory.create(url, **kwargs)
        self._transport = writer.transport
        inner = writer.transport.get_protocol()
        assert isinstance(inner, asyncio.Protocol)
        self._filter = FrameFilter(inner)
        writer.transport.set_protocol(self._filter)
        return reader, writer

    @property
    def closed(self) -> tuple[int, str] | None:
        """The reply code and text with which the broker closed the connection: aiormq loses some. None if it did not.

        "NOT_ALLOWED - vhost shop not found", for instance, before the connection is open.
        """
        return self._filter.closed if self._filter is not None else None

    @property
    def refusal(self) -> str:
        """Why the broker lets this user not in; "" for any other end. No wait helps, unlike against a limit."""
        code, text = self.closed or (0, "")
        return f"{code} {text}" if code in REFUSED and "limit" not in text else ""

    def register(self, channel: int, handle: FrameHandler) -> None:
        """Pass the frames of this channel to `handle` first; the connection has to be open."""
        assert self._filter is not None
        self._filter.register(channel, handle)

    def cut(self) -> None:
        """Abort the connection: no byte is sent any more, and none is waited for."""
        if self._transport is not None:
            self._transport.abort()
