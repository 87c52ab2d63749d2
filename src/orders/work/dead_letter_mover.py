"""Move the dead-letter queue into its table; a message is acked once its row is committed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from orders.broker.consumer import Consumer, Delivery
from orders.broker.topology import DEAD_QUEUE
from orders.database.dead_letters_table import DeadLetter
from orders.model import work_message
from orders.model.work_message import InvalidMessage
from orders.runtime.crash import stop_the_process_if_it_crashed

log = logging.getLogger(__name__)

PREFETCH = 50


class DeadLetterMover:
    """Owns the consumer of the dead-letter queue and the messages in hand."""

    def __init__(self, amqp_url: str, store: Callable[[DeadLetter], Awaitable[None]]) -> None:
        """`store` returns once the dead letter is committed. `stored` counts the letters since the start."""
        self.store = store
        self.consumer = Consumer(amqp_url, DEAD_QUEUE, PREFETCH, self._take)
        self.stored = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._consuming: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "DeadLetterMover":
        self._consuming = asyncio.create_task(self.consumer.run(), name="dead-letters")
        self._consuming.add_done_callback(stop_the_process_if_it_crashed)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.consumer.stop()
        # A message that is not stored by now goes back to the queue, and the next worker stores it.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.consumer.finish()
        if self._consuming is not None:
            await self._consuming

    def _take(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._store(delivery), name="dead-letter")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(stop_the_process_if_it_crashed)

    async def _store(self, delivery: Delivery) -> None:
        await self.store(DeadLetter(delivery.body, delivery.size))
        self.stored += 1
        log.warning("a dead letter is stored: %s", _name_of(delivery))
        delivery.ack()


def _name_of(delivery: Delivery) -> str:
    """Return the name of a message for the log; one that has no order id is named by its fault."""
    try:
        return f"the message of order {work_message.parse(delivery.body, delivery.size).order_id}"
    except InvalidMessage as invalid:
        return f"{invalid.kind}: {invalid}"
