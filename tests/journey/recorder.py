"""Somebody who subscribes to every event, and writes down what is heard."""

from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from uuid import UUID

import aiormq
import msgspec
from aiormq.abc import DeliveredMessage

from orders.model import events
from orders.model.events import Envelope
from tests.eventually import eventually

QUEUE = "journey.events"


class Heard(msgspec.Struct, frozen=True):
    """One delivery."""

    envelope: Envelope
    routing_key: str
    message_id: str | None
    delivery_mode: int | None


class Recorder:
    """Bound to `order.*` by a durable queue, so that it misses nothing while the broker is away."""

    def __init__(self, amqp_url: str) -> None:
        self.amqp_url = amqp_url
        self.heard: list[Heard] = []

    async def subscribe(self) -> None:
        """Have the queue made, before the first event."""
        connection = await aiormq.connect(self.amqp_url)
        async with connection:
            channel = await connection.channel()
            await channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
            await channel.queue_bind(QUEUE, events.EXCHANGE, "order.*")

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Take deliveries as they come."""
        connection = await aiormq.connect(self.amqp_url)
        async with connection:
            channel = await connection.channel()
            consuming = await channel.basic_consume(QUEUE, self._take, no_ack=True)
            yield
            await channel.basic_cancel(str(consuming.consumer_tag))

    async def heard_all(self, event_ids: Collection[UUID]) -> None:
        """Return once every one of them was heard."""
        async with self.listening():
            await eventually(lambda: set(event_ids) <= self.counts().keys(), 30)

    def counts(self) -> Counter[UUID]:
        """How often each event was heard."""
        return Counter(event.envelope.id for event in self.heard)

    async def _take(self, message: DeliveredMessage) -> None:
        properties = message.header.properties
        self.heard.append(
            Heard(
                envelope=events.open_envelope(message.body),
                routing_key=message.routing_key or "",
                message_id=properties.message_id,
                delivery_mode=properties.delivery_mode,
            )
        )
