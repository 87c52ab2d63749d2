"""Somebody who subscribes to every event, and writes down what is heard before saying so to the broker."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiormq
import msgspec
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPError
from yarl import URL

from dev.chaos.ledger import Ledger, now

QUEUE = "chaos.events"
EXCHANGE = "orders"
EVENTS = ("order.placed", "order.redriven", "order.done", "order.failed", "order.cancelled")


class Heard(msgspec.Struct, frozen=True):
    """One delivery, in the order of deliveries."""

    event_id: str
    type: str
    order_id: str
    version: int
    redelivered: bool
    at: float


class _Data(msgspec.Struct):
    order_id: str
    version: int


class _Envelope(msgspec.Struct):
    id: str
    type: str
    data: _Data


_open = msgspec.json.Decoder(_Envelope).decode


class Recorder:
    """Its queue is durable, so it misses nothing while it or the broker is away. It listens past every wire."""

    def __init__(self, amqp_url: str, path: Path) -> None:
        self.amqp_url = amqp_url
        self.ledger = Ledger(path)
        self.ended: dict[str, float] = {}  # order -> when its end was first heard
        self.foreign = 0  # what others published into our exchange
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Have the queue made, before the first event; then listen until `stop`."""
        async with aiormq.connect(self.amqp_url) as connection:
            channel = await connection.channel()
            await channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
            # One by one: a fault that has the required ones come back unbinds us from those alone.
            for event_type in EVENTS:
                await channel.queue_bind(QUEUE, EXCHANGE, event_type)
        self._task = asyncio.create_task(self._listen(), name="recorder")

    async def stop(self) -> None:
        """Listen no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.ledger.close()

    async def depth(self) -> int:
        """How many messages wait for us."""
        async with aiormq.connect(self.amqp_url) as connection:
            channel = await connection.channel()
            declared = await channel.queue_declare(QUEUE, passive=True)
            return declared.message_count or 0

    async def _listen(self) -> None:
        me = asyncio.current_task()
        while True:
            with contextlib.suppress(AMQPError, OSError, TimeoutError, RuntimeError):
                try:
                    await self._listen_once()
                except asyncio.CancelledError:
                    if me is not None and me.cancelling():
                        raise
            await asyncio.sleep(0.2)

    async def _listen_once(self) -> None:
        async with asyncio.timeout(5):
            connection = await aiormq.connect(URL(self.amqp_url).update_query(heartbeat=3))
        try:
            channel = await connection.channel(frame_buffer_size=0)
            await channel.basic_qos(prefetch_count=500)
            arrived: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
            await channel.basic_consume(QUEUE, _putting(arrived))
            while not connection.is_closed and not channel.is_closed:
                try:
                    async with asyncio.timeout(0.5):
                        batch = [await arrived.get()]
                except TimeoutError:
                    continue
                while not arrived.empty():
                    batch.append(arrived.get_nowait())
                await asyncio.gather(*(self._write(message) for message in batch))
                last = batch[-1].delivery.delivery_tag  # type: ignore[union-attr]
                assert last is not None
                await channel.basic_ack(last, multiple=True, wait=False)
        finally:
            with contextlib.suppress(AMQPError, OSError, TimeoutError, RuntimeError):
                async with asyncio.timeout(2):
                    await connection.close()

    async def _write(self, message: DeliveredMessage) -> None:
        try:
            envelope = _open(bytes(message.body))
        except msgspec.DecodeError:
            self.foreign += 1
            return
        if message.header.properties.message_id != envelope.id:
            self.foreign += 1
            return
        if envelope.type in {"order.done", "order.failed", "order.cancelled"}:
            self.ended.setdefault(envelope.data.order_id, now())
        elif envelope.type == "order.redriven":
            self.ended.pop(envelope.data.order_id, None)
        redelivered = bool(message.delivery.redelivered)  # type: ignore[union-attr]
        heard = Heard(envelope.id, envelope.type, envelope.data.order_id, envelope.data.version, redelivered, now())
        await self.ledger.write(heard)


def _putting(queue: "asyncio.Queue[DeliveredMessage]") -> Any:
    async def put(message: DeliveredMessage) -> None:
        queue.put_nowait(message)

    return put
