"""A consumer of our events that has each effect once: the bundled example, on real servers."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from psycopg import AsyncConnection

from examples.mailer import create_table, write_mail
from orders.broker import rabbitmq
from orders.handlers import Refuse, Retry
from orders.model import events
from orders.model.events import EXCHANGE, Data, Envelope, Event
from orders.model.ids import uuid7
from orders.model.traceparent import continue_trace
from orders.runtime.settings import SubscriberSettings
from orders.subscriber import EventHandler, Subscriber, Subscription, declare
from tests.eventually import eventually
from tests.orders.work_samples import rows

MAILS = 'SELECT to_whom, subject FROM mails ORDER BY subject COLLATE "C"'  # as Python sorts


def done(reference: str) -> Event:
    data = Data(order_id=uuid7(), status="done", version=3, customer_id="17850", reference=reference)
    return events.event_of("order.done", data, continue_trace(None))


@asynccontextmanager
async def subscribed(database_url: str, amqp_url: str, handle: EventHandler) -> AsyncIterator[Subscriber]:
    settings = SubscriberSettings(database_url=database_url, amqp_url=amqp_url)
    subscriber = Subscriber(settings, Subscription("mailer", ("order.done",), handle))
    stop = asyncio.Event()
    running = asyncio.create_task(subscriber.run(stop))
    yield subscriber
    stop.set()
    await asyncio.wait_for(running, 15)


async def publish(amqp_url: str, bodies: Sequence[bytes]) -> None:
    """Publish to whoever has subscribed: the mailer."""
    async with rabbitmq.connect(amqp_url, "test") as connection:
        await declare(connection, Subscription("mailer", ("order.done",), write_mail))
        channel = await connection.channel()
        for body in bodies:
            await channel.basic_publish(body, exchange=EXCHANGE, routing_key="order.done", mandatory=True)


async def test_each_event_is_one_mail(conn: AsyncConnection, database_url: str, topology: str) -> None:
    """
    However often an event comes, to however many of the example's processes, there is one mail for it.
    """
    await create_table(conn)
    await publish(topology, [done(f"order {number}").body for number in range(20)] * 3)
    async with (
        subscribed(database_url, topology, write_mail) as one,
        subscribed(database_url, topology, write_mail) as two,
    ):
        await eventually(lambda: one.handled + two.handled + one.repeated + two.repeated == 60)
        assert one.handled + two.handled == 20

    assert await rows(conn, MAILS) == sorted(("17850", f"Your order order {each} is on its way") for each in range(20))


async def test_failure_is_tried_again_and_refusal_is_not(database_url: str, topology: str) -> None:
    """
    A handler that raises anything but Refuse gets its event again; what it refuses, what is no event, and what is older
    than the inbox remembers end in its dead letters.
    """
    tries: Counter[str | None] = Counter()

    async def handle(event: Envelope, conn: AsyncConnection) -> None:
        tries[event.data.reference] += 1
        if event.data.reference == "refused":
            raise Refuse("not for us")
        if event.data.reference == "thrice" and tries["thrice"] < 3:
            raise Retry("not this time") if tries["thrice"] == 1 else RuntimeError("nor this time")

    old = done("old")
    long_ago = old.body.replace(str(old.event_id).encode(), b"01700000-0000-7000-8000-000000000000")
    await publish(topology, [done("refused").body, done("thrice").body, b"garbage", long_ago])
    async with subscribed(database_url, topology, handle) as subscriber:
        await eventually(lambda: (subscriber.handled, subscriber.refused) == (1, 3))

    assert tries == {"refused": 1, "thrice": 3}
    async with rabbitmq.connect(topology, "test") as connection:
        channel = await connection.channel()
        for _ in range(3):
            assert (await channel.basic_get("mailer.dead", no_ack=True)).body
