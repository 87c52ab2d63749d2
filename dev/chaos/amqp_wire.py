"""A wire that knows AMQP's frames: it can tell confirms otherwise than the broker did, and speak in a client's name."""

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast
from urllib.parse import urlsplit

from dev.sandbox.wire import Way, Wire

METHOD = 1
CONTENT = (2, 3)  # header and body of a message
CHANNEL_OPEN_OK, BASIC_ACK, BASIC_NACK = b"\x00\x14\x00\x0b", b"\x00\x3c\x00\x50", b"\x00\x3c\x00\x78"
CONSUME_OK, BASIC_DELIVER, GET_EMPTY = b"\x00\x3c\x00\x15", b"\x00\x3c\x00\x3c", b"\x00\x3c\x00\x48"
GREETING = b"AMQP\x00\x00\x09\x01"
GATHER_SECONDS = 0.03  # while confirms are shuffled: one alone has no order

Word = Callable[[int], bytes]  # what to say on a channel: a whole frame


class Frames:
    """One direction of a connection, cut into frames as they become complete."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that these bytes complete; a client's greeting counts as one."""
        data, at = self._rest + data, 0
        frames = []
        while len(data) - at >= len(GREETING):
            # The smallest frame has as many bytes as the greeting, and none begins like it.
            is_greeting = data[at : at + 4] == GREETING[:4]
            size = len(GREETING) if is_greeting else 8 + int.from_bytes(data[at + 3 : at + 7])
            if len(data) - at < size:
                break
            frames.append(data[at : at + size])
            at += size
        self._rest = data[at:]
        return frames


def channel_of(frame: bytes) -> int:
    return int.from_bytes(frame[1:3])


def method_of(frame: bytes) -> bytes:
    """Class and method; empty for what is none."""
    return frame[7:11] if frame[0] == METHOD else b""


def ack_of(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    payload = BASIC_ACK + tag.to_bytes(8) + bytes([multiple])
    return bytes([METHOD]) + channel.to_bytes(2) + len(payload).to_bytes(4) + payload + b"\xce"


class Confirms:
    """What a broker has confirmed on each channel of a connection, so that it can be told in another order."""

    def __init__(self) -> None:
        self._low: dict[int, int] = defaultdict(int)  # every tag up to this is answered
        self._ahead: dict[int, set[int]] = defaultdict(set)  # those beyond it that are

    def note(self, frame: bytes) -> list[int]:
        """Return the tags that this frame answers."""
        channel, method = channel_of(frame), method_of(frame)
        if method == CHANNEL_OPEN_OK:  # the numbers begin again
            self._low.pop(channel, None)
            self._ahead.pop(channel, None)
        if method not in {BASIC_ACK, BASIC_NACK}:
            return []
        last, multiple = int.from_bytes(frame[11:19]), frame[19] & 1
        low, ahead = self._low[channel], self._ahead[channel]
        tags = [tag for tag in range(low + 1, last + 1) if tag not in ahead] if multiple else [last]
        ahead.update(tags)
        while low + 1 in ahead:
            low += 1
            ahead.remove(low)
        self._low[channel] = low
        return tags

    def shuffled(self, frames: Sequence[bytes]) -> tuple[list[bytes], int]:
        """Return the same words with the acks among them last and mixed, and how many were told out of their order.

        A return stands before the ack of its message still. Where a channel or connection opens or closes, nothing is
        moved past that.
        """
        answered = [(frame, self.note(frame)) for frame in frames]
        if any(method_of(frame)[:2] in {b"\x00\x0a", b"\x00\x14"} for frame in frames):
            return list(frames), 0
        kept = [frame for frame in frames if method_of(frame) != BASIC_ACK]
        tags = [(channel_of(frame), tag) for frame, tags in answered if method_of(frame) == BASIC_ACK for tag in tags]
        mixed = random.sample(tags, len(tags))
        moved = sum(before != after for before, after in zip(tags, mixed, strict=True))
        return kept + [ack_of(channel, tag) for channel, tag in mixed], moved


class AmqpWire(Wire):
    """A wire between a client and RabbitMQ, without TLS. It passes on whole frames."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.moved = 0  # confirms that were told out of their order
        self.interjected = 0  # words that no client has said
        self._is_shuffling = False
        self._word: Word | None = None
        self._lost: frozenset[bytes] = frozenset()
        self.lost = 0  # answers that were lost

    def lose(self, *methods: bytes) -> None:
        """Lose these answers of the broker from now on, and the messages behind them."""
        self._lost = frozenset(methods)

    def shuffle(self) -> None:
        """Tell confirms one by one and in any order from now on, however the broker puts them."""
        self._is_shuffling = True

    def interject(self, word: Word | None) -> None:
        """Say something in the name of the next client that uses a channel, on that channel, once; None: nothing."""
        self._word = word

    def mend(self) -> None:
        self._is_shuffling = False
        self._word = None
        self._lost = frozenset()
        super().mend()

    async def _pump(
        self,
        way: Way,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        edited = _Edited(source, self._there() if way == "there" else self._back(), self)
        await super()._pump(way, cast(asyncio.StreamReader, edited), sink, ends)

    def _there(self) -> Callable[[bytes], bytes]:
        frames = Frames()

        def edit(data: bytes) -> bytes:
            said = frames.feed(data)
            for number, frame in enumerate(said):
                # Before a method, never between a message's method and its body.
                if self._word is not None and frame[0] == METHOD and channel_of(frame):
                    said.insert(number, self._word(channel_of(frame)))
                    self._word = None
                    self.interjected += 1
                    break
            return b"".join(said)

        return edit

    def _back(self) -> Callable[[bytes], bytes]:
        frames, confirms = Frames(), Confirms()

        def edit(data: bytes) -> bytes:
            said = frames.feed(data)
            if self._lost:
                kept = [frame for frame in said if frame[0] not in CONTENT and method_of(frame) not in self._lost]
                self.lost += len(said) - len(kept)
                said = kept
            if self._is_shuffling:
                said, moved = confirms.shuffled(said)
                self.moved += moved
            else:
                for frame in said:
                    confirms.note(frame)
            return b"".join(said)

        return edit

    async def gather(self) -> None:
        """While confirms are shuffled, let some come together."""
        if self._is_shuffling:
            await asyncio.sleep(GATHER_SECONDS)


@contextlib.asynccontextmanager
async def amqp_wire_to(url: str) -> AsyncIterator[AmqpWire]:
    """A wire to the broker of a URL."""
    parts = urlsplit(url)
    async with AmqpWire(parts.hostname or "", parts.port or 5672) as wire:
        yield wire


class _Edited:
    """A stream as the wire passes it on."""

    def __init__(self, source: asyncio.StreamReader, edit: Callable[[bytes], bytes], wire: AmqpWire) -> None:
        self._source = source
        self._edit = edit
        self._wire = wire

    async def read(self, most: int) -> bytes:
        while True:
            await self._wire.gather()
            data = await self._source.read(most)
            if not data or (whole := self._edit(data)):
                return whole if data else b""
