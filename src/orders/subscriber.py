"""Subscribers: consume the events in another service, and apply each event once. Public API.

    async def send_mail(event: Envelope, conn: AsyncConnection) -> None: ...

    subscriber.main(Subscription("mailer", ("order.done",), send_mail))

Each subscription has a queue of its own. The rows that the handler writes with `conn` are committed together with the
event's id, or not at all; then the message is acked. Events of one order may come again and, after a failure, out of
order: the higher `event.data.version` is newer. If the handler raises `orders.handlers.Refuse`, the message goes to the
subscription's dead-letter queue; after any other error, it is handled again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec
import psycopg
from aiormq.abc import AbstractConnection, FieldTable
from aiormq.exceptions import AMQPError, ChannelPreconditionFailed
from psycopg import AsyncConnection

from orders.broker import rabbitmq
from orders.broker.consumer import Consumer, Delivery
from orders.broker.rabbitmq import BrokerRefused, BrokerUnavailable
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

__all__ = ["EventHandler", "Prepare", "Subscription", "main"]

KEEP_SECONDS = 3600.0
CALL_SECONDS = 10.0

EventHandler = Callable[[Envelope, AsyncConnection], Awaitable[object]]
Prepare = Callable[[AsyncConnection], Awaitable[object]]


class Subscription(msgspec.Struct, frozen=True):
    """Which events a consumer wants, and what handles them."""

    #: The name of its queue, of its dead-letter queue `<name>.dead` and of its rows in the inbox. Never change it.
    name: str
    #: Event types, such as `order.done`; AMQP patterns, such as `order.*`, work too.
    event_types: tuple[str, ...]
    #: Called with each event and a connection with an open transaction.
    handle: EventHandler
    #: Called once at start, for example to create a table; None: nothing to prepare.
    prepare: Prepare | None = None


async def declare(connection: AbstractConnection, subscription: Subscription) -> None:
    """Declare the subscription's queue, its dead-letter exchange and queue, and its bindings. Harmless to repeat.

    The exchange is its own, so that its user needs no right to publish to other queues.
    """
    dead = f"{subscription.name}.dead"
    arguments: FieldTable = {
        "x-queue-type": "quorum",
        "x-delivery-limit": 1000,
        "x-dead-letter-exchange": dead,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # at-least-once dead-lettering needs it
    }
    channel = await connection.channel()
    await channel.exchange_declare(dead, exchange_type="fanout", durable=True)
    await channel.queue_declare(dead, durable=True, arguments={"x-queue-type": "quorum"})
    await channel.queue_bind(dead, dead)
    try:
        await channel.queue_declare(subscription.name, durable=True, arguments=arguments)
    except ChannelPreconditionFailed:
        # The arguments of a queue cannot be changed. One that an earlier version declared leads to the same dead
        # letters, by the default exchange, and RabbitMQ asks no user for a right to do so.
        channel = await connection.channel()
        earlier: FieldTable = {**arguments, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
        await channel.queue_declare(subscription.name, durable=True, arguments=earlier)
    for event_type in subscription.event_types:
        await channel.queue_bind(subscription.name, EXCHANGE, event_type)
    await channel.close()


class Subscriber:
    """Handles the deliveries of one subscription: SUBSCRIBER_AT_ONCE concurrently, each in its own transaction."""

    def __init__(self, settings: SubscriberSettings, subscription: Subscription) -> None:
        self.settings = settings
        self.subscription = subscription
        self.handled = self.repeated = self.refused = 0
        self._deliveries: asyncio.Queue[Delivery] = asyncio.Queue()

    async def run(self, stop: asyncio.Event) -> None:
        """Handle events until `stop` is set, then finish those in hand within SUBSCRIBER_GRACE, or requeue them."""
        settings = self.settings
        await postgres.require_database(settings.database_url, inbox.COLUMNS_ARE_THERE)
        await self._declare(stop)
        consumer = Consumer(
            settings.amqp_url, self.subscription.name, 2 * settings.subscriber_at_once, self._deliveries.put_nowait
        )
        handling = [
            asyncio.create_task(self._handle_deliveries(stop), name=f"{self.subscription.name}-{number}")
            for number in range(settings.subscriber_at_once)
        ]
        tasks = [*handling, asyncio.create_task(self._keep(), name="inbox-keep")]
        consuming = asyncio.create_task(consumer.run(), name="consumer")
        try:
            stopping = asyncio.create_task(stop.wait(), name="stop")
            await asyncio.wait([stopping, consuming, *tasks], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            consumer.stop()
            await asyncio.wait(handling, timeout=settings.subscriber_grace)
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
            except BrokerRefused:
                raise
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

    async def _handle_deliveries(self, stop: asyncio.Event) -> None:
        """Handle one delivery after the other, on one connection."""
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
                for pause in backoff(first=0.1, longest=30):
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
                    except Exception as error:  # any error of a handler: handle it again, since no event may get lost
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
