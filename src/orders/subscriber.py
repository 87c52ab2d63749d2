"""A consumer of our events, for other services: a queue of its own, and each event's effect once.

    async def send_mail(event: Envelope, conn: AsyncConnection) -> None: ...

    subscriber.main(Subscription("mailer", ("order.done",), send_mail))

What the handler writes with `conn` is committed together with the event's id, or not at all; the ack follows. Events of
one order may come again and, after a failure, out of order: `event.data.version` tells which is newer.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec
import psycopg
from aiormq.abc import AbstractConnection, FieldTable
from aiormq.exceptions import AMQPError
from psycopg import AsyncConnection

from orders.broker import rabbitmq
from orders.broker.consumer import Consumer, Delivery
from orders.broker.rabbitmq import BrokerUnavailable
from orders.database import inbox, postgres
from orders.database.inbox import OutsideRetention
from orders.handlers import Refuse
from orders.model import events
from orders.model.error_text import first_line
from orders.model.events import EXCHANGE, Envelope
from orders.runtime import process
from orders.runtime.retry_pauses import backoff
from orders.runtime.settings import SubscriberSettings

log = logging.getLogger(__name__)

KEEP_SECONDS = 3600.0
CALL_SECONDS = 10.0

EventHandler = Callable[[Envelope, AsyncConnection], Awaitable[object]]
Prepare = Callable[[AsyncConnection], Awaitable[object]]


class Subscription(msgspec.Struct, frozen=True):
    """Who listens to what. The name is that of its queue, and of its rows in the inbox: it never changes."""

    name: str
    event_types: tuple[str, ...]
    handle: EventHandler
    prepare: Prepare | None = None  # run once at start: a table of one's own


async def declare(connection: AbstractConnection, subscription: Subscription) -> None:
    """Declare the subscription's queue, its dead letters and its bindings; harmless to repeat."""
    arguments: FieldTable = {
        "x-queue-type": "quorum",
        "x-delivery-limit": 1000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": f"{subscription.name}.dead",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # at-least-once dead-lettering needs it
    }
    channel = await connection.channel()
    await channel.queue_declare(f"{subscription.name}.dead", durable=True, arguments={"x-queue-type": "quorum"})
    await channel.queue_declare(subscription.name, durable=True, arguments=arguments)
    for event_type in subscription.event_types:
        await channel.queue_bind(subscription.name, EXCHANGE, event_type)
    await channel.close()


class Subscriber:
    """Handles the deliveries of one subscription, some at a time, each in a transaction of its own."""

    def __init__(self, settings: SubscriberSettings, subscription: Subscription) -> None:
        self.settings = settings
        self.subscription = subscription
        self.handled = self.repeated = self.refused = 0
        self._deliveries: asyncio.Queue[Delivery] = asyncio.Queue()

    async def run(self, stop: asyncio.Event) -> None:
        """Handle events until `stop` is set; what is in hand then is finished, or goes back to the queue."""
        settings = self.settings
        await postgres.require_database(settings.database_url, inbox.COLUMNS_ARE_THERE)
        await self._declare(stop)
        consumer = Consumer(
            settings.amqp_url, self.subscription.name, 2 * settings.subscriber_at_once, self._deliveries.put_nowait
        )
        lanes = [
            asyncio.create_task(self._lane(stop), name=f"{self.subscription.name}-{number}")
            for number in range(settings.subscriber_at_once)
        ]
        tasks = [*lanes, asyncio.create_task(self._keep(), name="inbox-keep")]
        consuming = asyncio.create_task(consumer.run(), name="consumer")
        try:
            stopping = asyncio.create_task(stop.wait(), name="stop")
            await asyncio.wait([stopping, consuming, *tasks], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            consumer.stop()
            await asyncio.wait(lanes, timeout=settings.subscriber_grace)
        finally:
            consumer.stop()
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            consumer.finish()
            await consuming
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _declare(self, stop: asyncio.Event) -> None:
        for pause in backoff():
            if stop.is_set():
                return
            try:
                async with rabbitmq.connect(self.settings.amqp_url, f"{self.subscription.name} declare") as connection:
                    async with asyncio.timeout(CALL_SECONDS):
                        await declare(connection, self.subscription)
                    return
            except (BrokerUnavailable, AMQPError, OSError, TimeoutError) as error:
                log.warning("%s: cannot declare its queue yet: %s", self.subscription.name, error)
            await asyncio.sleep(pause)

    async def _keep(self) -> None:
        while True:
            conn = None
            try:
                conn = await postgres.connect(self.settings.database_url, f"{self.subscription.name} keep")
                with postgres.deadline(conn, CALL_SECONDS):
                    await inbox.keep(conn, self.settings.inbox_days)
            except psycopg.Error as error:
                log.warning("%s: the inbox is not tidied: %s", self.subscription.name, first_line(error))
            finally:
                await postgres.close(conn)
            await asyncio.sleep(KEEP_SECONDS)

    async def _lane(self, stop: asyncio.Event) -> None:
        """Own a connection, and handle one delivery after the other on it."""
        conn: AsyncConnection | None = None
        try:
            while not stop.is_set():
                getting = asyncio.create_task(self._deliveries.get(), name="next")
                stopping = asyncio.create_task(stop.wait(), name="stop")
                await asyncio.wait([getting, stopping], return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                if not getting.done():
                    getting.cancel()
                    return
                delivery = getting.result()
                for pause in backoff(first=0.1, most=30):
                    if delivery.lost or stop.is_set():
                        break  # it comes again
                    try:
                        conn = conn or await postgres.connect(self.settings.database_url, self.subscription.name)
                        await self._handle(delivery, conn)
                        break
                    except (Refuse, OutsideRetention) as error:
                        log.warning("%s: refused: %s", self.subscription.name, error)
                        self.refused += 1
                        delivery.reject()
                        break
                    except Exception as error:  # whatever a handler raises: again, for an event must not get lost
                        log.warning(
                            "%s: again: %s: %s", self.subscription.name, type(error).__name__, first_line(error)
                        )
                        if conn is None or conn.broken:
                            await postgres.close(conn)
                            conn = None
                    await asyncio.sleep(pause)
        finally:
            await postgres.close(conn)

    async def _handle(self, delivery: Delivery, conn: AsyncConnection) -> None:
        try:
            event = events.open_envelope(delivery.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refuse(f"not an event: {first_line(error)}") from None
        with postgres.deadline(conn, self.settings.subscriber_timeout):
            async with conn.transaction():
                is_first = await inbox.is_first(conn, self.subscription.name, event.id)
                if is_first:
                    await self.subscription.handle(event, conn)
        if is_first:
            self.handled += 1
        else:
            self.repeated += 1
        delivery.ack()


def main(subscription: Subscription) -> None:
    """Run a subscription as a process of its own, until SIGTERM; settings come from the environment."""
    settings = SubscriberSettings.read_or_exit(subscription.name)

    async def serve() -> None:
        stop = asyncio.Event()
        process.on_stop_signals(stop.set)
        if subscription.prepare is not None:
            await postgres.require_database(settings.database_url)
            conn = await postgres.connect(settings.database_url, subscription.name)
            try:
                await subscription.prepare(conn)
            finally:
                await postgres.close(conn)
        subscriber = Subscriber(settings, subscription)
        await subscriber.run(stop)
        log.info("%s has stopped: %s handled, %s repeated", subscription.name, subscriber.handled, subscriber.repeated)

    process.run(subscription.name, serve, settings.log_level)
