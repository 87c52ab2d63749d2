"""Deliveries in, acks out; comes back by itself whenever the broker, the channel or the queue does."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import aiormq
from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import AMQPError

from orders import broker
from orders.backoff import backoff
from orders.broker import BrokerUnavailable

log = logging.getLogger(__name__)

CALL_SECONDS = 5.0


class Delivery:
    """A message in hand. It stays ours until it is acked or rejected, or its channel is gone."""

    __slots__ = ("_channel", "_message", "body")

    def __init__(self, channel: AbstractChannel, message: DeliveredMessage) -> None:
        self._channel = channel
        self._message = message
        self.body = bytes(message.body)

    @property
    def redelivered(self) -> bool:
        """Whether the broker has delivered it before."""
        return bool(self._message.delivery.redelivered)  # type: ignore[union-attr]

    def header(self, name: str) -> str | None:
        """Return a header if it is a string; headers are not to be trusted."""
        value = (self._message.header.properties.headers or {}).get(name)
        return value if isinstance(value, str) else None

    async def ack(self) -> None:
        """Tell the broker that the message is done with."""
        await self._answer(self._channel.basic_ack(self._tag, wait=False))

    async def reject(self) -> None:
        """Hand the message to the dead letters."""
        await self._answer(self._channel.basic_reject(self._tag, requeue=False, wait=False))

    @property
    def _tag(self) -> int:
        tag = self._message.delivery.delivery_tag  # type: ignore[union-attr]
        assert tag is not None
        return tag

    async def _answer(self, call: Awaitable[None]) -> None:
        # An answer that gets lost with its channel only means that the message is delivered again.
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await call
        except (AMQPError, OSError, TimeoutError, RuntimeError) as error:
            log.debug("answer lost: %s", error)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise  # it is really us
            # aiormq says so when the heartbeat fails


class Consumer:
    """Consumes one queue with a bounded prefetch; `take` gets each delivery and must return at once."""

    def __init__(self, urls: str, queue: str, prefetch: int, take: Callable[[Delivery], None]) -> None:
        self.urls = urls
        self.queue = queue
        self.prefetch = prefetch
        self.take = take
        self.connected = False
        self._stop = asyncio.Event()
        self._finished = asyncio.Event()

    def stop(self) -> None:
        """Take no more deliveries; those in hand may still be acked until `finish`."""
        self._stop.set()

    def finish(self) -> None:
        """Close the connection: what is still in hand goes back to the queue."""
        self._finished.set()

    async def run(self) -> None:
        """Consume until stopped and finished, over as many connections as it takes."""
        pauses = backoff()
        while not self._stop.is_set():
            try:
                async with broker.connect(self.urls, f"orders-worker {self.queue}") as connection:
                    if await self._consume(connection):
                        pauses = backoff()
            except (BrokerUnavailable, AMQPError, OSError, TimeoutError) as error:
                log.warning("no consumer: %s", str(error) or type(error).__name__)
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
                log.warning("no consumer: the broker's heartbeat has failed")
            finally:
                self.connected = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(next(pauses)):
                    await self._stop.wait()

    async def _consume(self, connection: aiormq.abc.AbstractConnection) -> bool:
        """Consume on one connection until it, its channel or the queue is gone, or we are told to stop."""
        lost = asyncio.Event()

        async def on_message(message: DeliveredMessage) -> None:
            self.take(Delivery(channel, message))

        async with asyncio.timeout(CALL_SECONDS):
            channel = await connection.channel(publisher_confirms=False, frame_buffer_size=0)
            channel.on_consumer_cancel_callbacks.add(lambda _frame: lost.set())  # the queue was deleted
            await channel.basic_qos(prefetch_count=self.prefetch)
            consuming = await channel.basic_consume(self.queue, on_message)
        for closing in (connection.closing, channel.closing):
            closing.add_done_callback(lambda _future: lost.set())
        self.connected = True
        log.info("consuming %s, %s in hand at most", self.queue, self.prefetch)

        await _first_of(lost, self._stop)
        self.connected = False
        if not lost.is_set():
            async with asyncio.timeout(CALL_SECONDS):
                await channel.basic_cancel(str(consuming.consumer_tag))
            await _first_of(lost, self._finished)
        return True


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait(), name="wait") for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
