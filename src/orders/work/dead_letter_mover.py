"""Move the dead-letter queue into its table; a message is acked when its letter is committed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from orders.broker.consumer import Consumer, Delivery
from orders.broker.topology import DEAD_QUEUE
from orders.runtime.crash import stop_the_process_if_it_crashed
from orders.work.letters import Letter

log = logging.getLogger(__name__)

PREFETCH = 50


class DeadLetters:
    """Owns the consumer of the dead-letter queue and the letters in hand."""

    def __init__(self, amqp_url: str, bury: Callable[[Letter], Awaitable[None]]) -> None:
        self.bury = bury
        self.consumer = Consumer(amqp_url, DEAD_QUEUE, PREFETCH, self._take)
        self.buried = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._consuming: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "DeadLetters":
        self._consuming = asyncio.create_task(self.consumer.run(), name="dead-letters")
        self._consuming.add_done_callback(stop_the_process_if_it_crashed)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.consumer.stop()
        # What cannot be written down now goes back to the queue, and is written down by the next worker.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.consumer.finish()
        if self._consuming is not None:
            await self._consuming

    def _take(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._bury(delivery), name="letter")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(stop_the_process_if_it_crashed)

    async def _bury(self, delivery: Delivery) -> None:
        await self.bury(Letter(delivery.body, delivery.size))
        self.buried += 1
        delivery.ack()
