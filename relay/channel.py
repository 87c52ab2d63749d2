"""An AMQP channel that writes a whole wave at once, and keeps its confirms as a range.

aiormq's own `basic_publish` costs 70 to 140 us a message, this channel 3 to 7 us. It also reads the confirms and
returns itself, for which aiormq takes 30 to 100 us each. It leans on what aiormq does not promise: `_on_close_frame`,
`write_queue`, `lock`, `delivery_tag`, and that it reads from a protocol in front of which a frame filter can stand.
tests/relay/test_channel_contract.py fails when an upgrade moves one of them.
"""

import asyncio
from typing import NamedTuple

import aiormq
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from pamqp import commands

from relay import amqp_bytes
from relay.frame_filter import HEADER, METHOD
from relay.frames import Encoder
from relay.message import CONFIRMED, Answer, Message, Reply

NACKED = Reply(Answer.NACKED, "the broker would not take it (is its queue full?)")


class WaveReplies(NamedTuple):
    """The replies to a wave so far."""

    answered: dict[int, Reply]  # by row id
    silent: list[Message]  # without a reply, in the order of the wave


class BatchChannel(Channel):
    """A confirming channel with one wave outstanding at a time."""

    def __init__(self, connection: aiormq.Connection, number: int) -> None:
        """Make a channel of this number; `register` its `take` with the frame filter before it is opened."""
        super().__init__(connection, number, publisher_confirms=True, frame_buffer=0)
        self.encoder = Encoder(number, connection.connection_tune.frame_max)
        self.closed_by_broker: tuple[int | None, str] | None = None  # reply code and text
        self._first = 1  # the delivery tag of the wave's first message
        self._wave: list[Message] = []
        self._replies: list[Reply | None] = []
        self._floor = 0  # everything before this place in the wave is answered
        self._left = 0
        self._places: dict[str, int] = {}
        self._returns: dict[int, str] = {}
        self._returned: str | None = None  # why, while the message that comes back is being read
        self._body_left = 0
        self._answered: asyncio.Future[None] | None = None

    async def send(self, wave: list[Message], payload: bytes) -> "asyncio.Future[None]":
        """Write a wave, whose encoded messages are `payload`; return a future that ends with its last reply.

        The future fails if the channel or the connection is closed before.
        """
        assert self._left == 0, "a wave is outstanding on this channel"
        async with self.lock:
            self._first = self.delivery_tag + 1
            self.delivery_tag += len(wave)
            self._wave = wave
            self._replies = [None] * len(wave)
            self._floor = 0
            self._left = len(wave)
            self._places = {message.event_id: place for place, message in enumerate(wave)}
            self._returns = {}
            self._answered = self.create_future()
            await self.write_queue.put(ChannelFrame(payload=payload, should_close=False, drain_future=None))
        return self._answered

    def replies(self) -> WaveReplies:
        """Return the replies to the wave so far."""
        answered: dict[int, Reply] = {}
        silent: list[Message] = []
        for message, reply in zip(self._wave, self._replies, strict=True):
            if reply is None:
                silent.append(message)
            else:
                answered[message.id] = reply
        return WaveReplies(answered, silent)

    def take(self, kind: int, payload: bytes) -> bool:
        """Handle a frame of this channel: a confirm, or a part of a returned message; return whether it was one."""
        if kind == METHOD:
            return self._take_method(payload)
        if self._returned is None:
            return False
        self._read_returned(self._returned, kind, payload)
        return True

    def _take_method(self, method: bytes) -> bool:
        self._returned = None
        match method[:4]:
            case amqp_bytes.ACK:
                self._answer(*amqp_bytes.read_confirm(method), CONFIRMED)
            case amqp_bytes.NACK:
                self._answer(*amqp_bytes.read_confirm(method), NACKED)
            case amqp_bytes.RETURN:
                self._returned = amqp_bytes.read_return(method)
            case _:
                return False
        return True

    def _answer(self, tag: int, multiple: bool, reply: Reply) -> None:
        """Record the reply to one message, or with `multiple` to all messages up to it that have none."""
        place = tag - self._first
        # A tag before the wave's first one belongs to a wave that has all of its replies: ignore it.
        if not 0 <= place < len(self._replies):
            return
        for at in range(self._floor if multiple else place, place + 1):
            if self._replies[at] is None:
                returned = self._returns.get(at)
                self._replies[at] = reply if returned is None else Reply(Answer.RETURNED, returned)
                self._left -= 1
        if multiple:
            self._floor = place + 1
        if self._left == 0 and self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def _read_returned(self, reason: str, kind: int, payload: bytes) -> None:
        """Read a part of a returned message; the confirm that follows it is then no success."""
        if kind == HEADER:
            self._body_left, event_id = amqp_bytes.read_content(payload)
            if (place := self._places.get(event_id)) is not None:
                self._returns[place] = reason
        else:
            self._body_left -= len(payload)
        if self._body_left <= 0:
            self._returned = None

    async def _on_close_frame(self, frame: commands.Channel.Close) -> None:
        """Keep the broker's reply code and text, then close the channel as aiormq does."""
        self.closed_by_broker = (frame.reply_code, frame.reply_text or "")
        await super()._on_close_frame(frame)
