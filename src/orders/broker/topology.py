"""The exchanges, queues and bindings: declared by `orders topology`, verified by each process that uses them.

Events that ask for work go to one quorum queue. Messages that cannot be worked go from there to the dead-letter queue,
at least once. The delivery limit is only a backstop, since a crash counts against every message that was in hand.
"""

import asyncio
from collections.abc import Mapping

from aiormq.abc import AbstractConnection, FieldTable
from aiormq.exceptions import AMQPError, ChannelClosed

from orders.broker import rabbitmq
from orders.broker.rabbitmq import BrokerRefused, BrokerUnavailable
from orders.model.errors import StartupError
from orders.model.events import EXCHANGE, REQUIRED
from orders.model.work_message import MOST_DELIVERIES
from orders.runtime.retry_pauses import backoff

WORK_QUEUE = "orders.work"
DEAD_QUEUE = "orders.dead"
DEAD_EXCHANGE = "orders.dead"

WORK_ARGUMENTS: FieldTable = {
    "x-queue-type": "quorum",
    "x-delivery-limit": MOST_DELIVERIES,
    "x-dead-letter-exchange": DEAD_EXCHANGE,
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",  # at-least-once dead-lettering needs it
}
DEAD_ARGUMENTS: FieldTable = {"x-queue-type": "quorum", "x-delivery-limit": MOST_DELIVERIES}

QUEUES: Mapping[str, FieldTable] = {WORK_QUEUE: WORK_ARGUMENTS, DEAD_QUEUE: DEAD_ARGUMENTS}
MEND = "run `orders topology`"


async def declare(connection: AbstractConnection) -> None:
    """Declare exchanges, queues and bindings; harmless to repeat. Raises StartupError if one has another shape."""
    try:
        channel = await connection.channel()
        await channel.exchange_declare(EXCHANGE, exchange_type="topic", durable=True)
        await channel.exchange_declare(DEAD_EXCHANGE, exchange_type="fanout", durable=True)
        # The work queue first: RabbitMQ 3.10, killed right after a declaration, may lose the last one.
        for queue, arguments in QUEUES.items():
            await channel.queue_declare(queue, durable=True, arguments=arguments)
        await channel.queue_bind(DEAD_QUEUE, DEAD_EXCHANGE)
        for event_type in sorted(REQUIRED):
            await channel.queue_bind(WORK_QUEUE, EXCHANGE, event_type)
        await channel.close()
    except ChannelClosed as error:
        raise StartupError(
            f"RabbitMQ has another shape of this topology ({error}): delete what differs, when it is empty, and {MEND}"
        ) from None


async def verify(connection: AbstractConnection) -> None:
    """Raise StartupError if a queue of the worker is missing."""
    channel = await connection.channel()
    for queue in QUEUES:
        try:
            await channel.queue_declare(queue, passive=True)
        except ChannelClosed as error:
            raise StartupError(f"the queue {queue} is not there ({error}): {MEND}") from None
    await channel.close()


async def wait_and(what: str, urls: str, seconds: float) -> None:
    """Wait up to `seconds` for the broker, then `declare` or `verify`.

    Raises StartupError if it does not answer, and at once if it refuses the password or the vhost.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    for pause in backoff():
        try:
            async with rabbitmq.connect(urls, f"orders-{what}") as connection, asyncio.timeout(10):
                urls = rabbitmq.after(urls, connection)
                await (declare if what == "declare" else verify)(connection)
                return  # an else would stand far from what it follows
        except BrokerRefused:
            raise
        except (BrokerUnavailable, AMQPError, OSError, TimeoutError) as error:
            if loop.time() > end:
                raise StartupError(
                    f"no connection to RabbitMQ in {seconds:.0f} s ({error}): is it running, and is AMQP_URL right?"
                ) from None
        await asyncio.sleep(pause)
