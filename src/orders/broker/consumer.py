"""Consume a queue: deliveries in, acks out. The consumer reconnects after a loss of broker, channel or queue."""

import asyncio
import contextlib
import logging
import struct
from collections.abc import Callable
from typing import Any

import aiormq
from aiormq.abc import AbstractConnection, ChannelFrame
from aiormq.channel import Channel
from aiormq.exceptions import AMQPError, ChannelClosed
from pamqp.base import Frame
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from orders.broker import amqp_bytes, rabbitmq
from orders.broker.frame_filter import HEADER, METHOD, FilteredTransport
from orders.broker.rabbitmq import BrokerUnavailable
from orders.runtime.retry_pauses import backoff

log = logging.getLogger(__name__)

CALL_SECONDS = 5.0
IDLE_SECONDS = 15.0  # without a delivery, after which the queue has to answer
MAX_BODY_BYTES = 1 << 20  # of a larger body only the first KEPT_BYTES are kept: no event is as large
KEPT_BYTES = 64 << 10
LARGEST_HEADER_BYTES = 16 << 10  # pamqp takes the square of them


class PendingAcks:
    """The deliveries of a channel that are to be acked or rejected, as few frames.

    One frame acks all deliveries up to a tag. Deliveries behind one that is still in hand are acked singly, so an order
    that hangs delays no other ack.
    """

    def __init__(self) -> None:
        self._low = 0  # every delivery up to this tag is acked or rejected
        self._ahead: set[int] = set()  # deliveries beyond it that are acked or rejected, too
        self._acks: list[int] = []
        self._rejects: list[int] = []

    def ack(self, tag: int) -> None:
        """Add an ack of the delivery with this tag."""
        self._acks.append(tag)

    def reject(self, tag: int) -> None:
        """Add a reject, which sends the message to the dead letters."""
        self._rejects.append(tag)

    def answered_all_up_to(self, tag: int) -> bool:
        """Return whether every delivery up to this tag is acked or rejected."""
        return self._low >= tag

    def take_frames(self) -> list[Frame]:
        """Return the frames to send, and forget them."""
        acks, rejects = self._acks, self._rejects
        self._acks, self._rejects = [], []
        self._ahead.update(acks, rejects)
        while self._low + 1 in self._ahead:
            self._low += 1
            self._ahead.remove(self._low)
        # An ack of a range includes all unanswered deliveries below its end, so rejects go first. Its end must be
        # unanswered itself, or the broker closes the channel because of an unknown tag.
        frames: list[Frame] = [Basic.Reject(tag, requeue=False) for tag in rejects]
        if below := [tag for tag in acks if tag <= self._low]:
            frames.append(Basic.Ack(max(below), multiple=True))
        frames.extend(Basic.Ack(tag) for tag in acks if tag > self._low)
        return frames


class ConsumingChannel(Channel):
    """A channel that hands deliveries over as they arrive, and sends their acks in batches.

    It depends on internals of aiormq: `write_queue`, `connection.channels`, and a protocol in front of which a frame
    filter can stand. tests/orders/broker/test_consumer.py fails if an upgrade changes one of them.
    """

    def __init__(
        self, connection: AbstractConnection, number: int, take: "Callable[[Delivery], None]", wake: asyncio.Event
    ) -> None:
        super().__init__(connection, number, publisher_confirms=False, frame_buffer=0)
        self.pending_acks = PendingAcks()
        self.wake = wake  # set when there is an ack to send
        self._take = take
        self._method: bytes | None = None  # of the delivery that is being read
        self._header = b""
        self._pieces: list[bytes] = []
        self._size = self._left = 0
        self.taken = 0  # the tag of the last delivery

    @property
    def is_empty(self) -> bool:
        """Whether no delivery is in hand."""
        return self.pending_acks.answered_all_up_to(self.taken)

    def take_frame(self, kind: int, payload: bytes) -> bool:
        """Take a frame and return True if it is part of a delivery; keep only the beginning of a large body."""
        if kind == METHOD:
            self._method = payload if payload.startswith(amqp_bytes.DELIVER) else None
            return self._method is not None
        if self._method is None:
            return False
        if kind == HEADER:
            self._header = payload
            self._size = self._left = amqp_bytes.read_size(payload)
            self._pieces = []
        else:
            if self._size <= MAX_BODY_BYTES or self._size - self._left < KEPT_BYTES:
                self._pieces.append(payload)
            self._left -= len(payload)
        if self._left <= 0:
            tag, redelivered = amqp_bytes.read_deliver(self._method)
            self._method = None
            self.taken = tag
            body = b"".join(self._pieces)
            self._take(
                Delivery(
                    self, tag, self._header, body if self._size <= MAX_BODY_BYTES else body[:KEPT_BYTES], self._size,
                    redelivered=redelivered,
                )
            )  # fmt: skip
        return True

    async def send_acks(self) -> None:
        """Send the pending acks and rejects."""
        if (frames := self.pending_acks.take_frames()) and not self.is_closed:
            await self.write_queue.put(ChannelFrame.marshall(self.number, frames))


class Delivery:
    """A message in hand, until it is acked or rejected, or its channel is lost."""

    __slots__ = ("_channel", "_header", "_tag", "body", "redelivered", "size")

    def __init__(
        self, channel: ConsumingChannel, tag: int, header: bytes, body: bytes, size: int, *, redelivered: bool
    ) -> None:
        self._channel = channel
        self._tag = tag
        self._header = header
        self.body = body
        self.size = size  # bytes of the whole body; `body` may be only its beginning
        self.redelivered = redelivered

    def header(self, name: str) -> str | None:
        """Return a header of the message; None if it is absent or no string."""
        return amqp_bytes.read_string(self._header, name.encode())

    def reason_of_death(self, queue: str) -> str | None:
        """Return why `queue` dead-lettered the message last, by RabbitMQ's x-death; None if that does not say.

        RabbitMQ's reasons are rejected, expired, maxlen and delivery_limit; a forged header may hold any.
        """
        header = ContentHeader()
        try:
            if len(self._header) <= LARGEST_HEADER_BYTES:
                header.unmarshal(self._header)
            deaths: Any = (header.properties.headers or {}).get("x-death", ())
            for death in deaths:  # the newest first
                if death["queue"] == queue:
                    return str(death["reason"])
        except (ValueError, LookupError, TypeError, ArithmeticError, OSError, struct.error, RecursionError):
            pass  # forged, or cut off
        return None

    def ack(self) -> None:
        """Ack the message, at the next turn of the consumer. If the ack is lost, the message is delivered again."""
        self._channel.pending_acks.ack(self._tag)
        self._channel.wake.set()

    def reject(self) -> None:
        """Reject the message, at the next turn of the consumer: the broker moves it to the dead letters."""
        self._channel.pending_acks.reject(self._tag)
        self._channel.wake.set()

    @property
    def lost(self) -> bool:
        """Whether the channel is lost: then the broker delivers the message again, to us or to another consumer."""
        return bool(self._channel.is_closed)


class Consumer:
    """Consumes one queue, `prefetch` messages in hand at most. `take` gets each delivery and must return at once."""

    def __init__(self, urls: str, queue: str, prefetch: int, take: Callable[[Delivery], None]) -> None:
        self.urls = urls
        self.queue = queue
        self.prefetch = prefetch
        self.take = take
        self.connected = False
        self._connection: AbstractConnection | None = None
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._finished = asyncio.Event()

    def stop(self) -> None:
        """Stop consuming; deliveries in hand may be acked until `finish`."""
        self._stop.set()
        self._wake.set()

    def finish(self) -> None:
        """Close the connection: messages that are still in hand return to the queue."""
        self._finished.set()
        self._wake.set()

    async def count_ready(self) -> int | None:
        """Return how many messages of the queue no consumer has in hand; None if the broker does not tell."""
        connection = self._connection
        if connection is None or not self.connected:
            return None
        try:
            async with asyncio.timeout(CALL_SECONDS):
                channel = await connection.channel(publisher_confirms=False)
                try:
                    return (await channel.queue_declare(self.queue, passive=True)).message_count
                finally:
                    await channel.close()
        except (AMQPError, OSError, RuntimeError, TimeoutError):
            return None
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return None  # the broker's heartbeat has failed

    async def run(self) -> None:
        """Consume until `stop` and `finish` are called; reconnect after every error of the broker."""
        pauses = backoff()
        last_logged = ""
        while not self._stop.is_set():
            why = ""
            try:
                wire = FilteredTransport()
                async with rabbitmq.connect(self.urls, f"orders {self.queue}", wire) as connection:
                    self._connection = connection
                    self.urls = rabbitmq.after(self.urls, connection)
                    await self._consume(connection, wire)
                    pauses = backoff()
            except (BrokerUnavailable, AMQPError, OSError, TimeoutError) as error:
                why = str(error) or type(error).__name__
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
                why = "the broker's heartbeat has failed"
            finally:
                self.connected = False
                self._connection = None
            if why and why != last_logged:  # once for each cause, not for each attempt
                log.warning("no consumer of %s: %s", self.queue, why)
            last_logged = why
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(next(pauses)):
                    await self._stop.wait()

    async def _consume(self, connection: AbstractConnection, wire: FilteredTransport) -> None:
        """Consume on one connection until it, its channel or the queue is lost, or until `stop` and `finish`."""
        lost = asyncio.Event()

        def lose(_why: object) -> None:
            lost.set()
            self._wake.set()

        async with asyncio.timeout(CALL_SECONDS):
            channel = await _open(connection, wire, self.take, self._wake)
            # The broker cancels a consumer whose queue is deleted or, from 4.3 on, which holds a delivery for too long.
            channel.on_consumer_cancel_callbacks.add(lose)
            await channel.basic_qos(prefetch_count=self.prefetch)
            consuming = await channel.basic_consume(self.queue, _never_called)
        for closing in (connection.closing, channel.closing):
            closing.add_done_callback(lose)
        self.connected = True
        log.info("consuming %s, %s in hand at most", self.queue, self.prefetch)

        checking = asyncio.create_task(self._check_while_idle(connection, channel, lose), name="idle-check")
        try:
            await self._send_acks_until(channel, lost, self._stop)
        finally:
            checking.cancel()
        self.connected = False
        if not lost.is_set():
            async with asyncio.timeout(CALL_SECONDS):
                await channel.basic_cancel(str(consuming.consumer_tag))
            await self._send_acks_until(channel, lost, self._finished)
        if lost.is_set():
            log.warning("the consumer of %s was cancelled, or its connection is lost", self.queue)

    async def _check_while_idle(
        self, connection: AbstractConnection, channel: ConsumingChannel, lose: Callable[[object], None]
    ) -> None:
        """Make sure now and then that a queue which delivers nothing answers; call `lose` if it does not.

        A node that its cluster has lost keeps its connections, and answers a passive declare from its own copy. Only
        the queue's leader can say that the queue is empty. A message that just arrives returns with the channel.
        """
        while True:
            taken = channel.taken
            await asyncio.sleep(IDLE_SECONDS)
            if channel.taken != taken or not channel.is_empty:
                continue
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    asking = await connection.channel(publisher_confirms=False)
                    with contextlib.suppress(ChannelClosed):  # it answers: consuming shows what is wrong
                        await asking.basic_get(self.queue)
                        await asking.close()
            except (AMQPError, OSError, TimeoutError) as error:
                log.warning("%s does not answer: %s", self.queue, str(error) or f"no answer in {CALL_SECONDS:.0f} s")
                lose(error)
                return

    async def _send_acks_until(self, channel: ConsumingChannel, *ends: asyncio.Event) -> None:
        """Send acks as they come until one of the events is set; then send the last ones."""
        ended = False
        while not ended:
            if not any(end.is_set() for end in ends):
                await self._wake.wait()
            self._wake.clear()
            ended = any(end.is_set() for end in ends)
            async with asyncio.timeout(CALL_SECONDS):  # aiormq's queue stays full while the broker reads nothing
                await channel.send_acks()


async def _open(
    connection: AbstractConnection, wire: FilteredTransport, take: Callable[[Delivery], None], wake: asyncio.Event
) -> ConsumingChannel:
    number = max(connection.channels, default=0) + 1
    channel = ConsumingChannel(connection, number, take, wake)
    wire.register(number, channel.take_frame)
    connection.channels[number] = channel
    await channel.open()
    return channel


async def _never_called(_message: aiormq.abc.DeliveredMessage) -> None:
    raise AssertionError("ConsumingChannel hands deliveries over itself")
