"""Move the dead-letter queue into its table; a message is acked once its row is committed.

A message that the broker itself gave up, or that no worker sent there, is no dead letter: its order gets another one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from prometheus_client import Counter

from orders.broker.consumer import Consumer, Delivery
from orders.broker.topology import DEAD_QUEUE, WORK_QUEUE
from orders.database.dead_letters_table import UNEXPLAINED, BroughtBack, DeadLetter, GivenUp
from orders.model import work_message
from orders.model.traceparent import continue_trace
from orders.model.work_message import InvalidMessage
from orders.runtime.crash import stop_the_process_if_it_crashed

log = logging.getLogger(__name__)

PREFETCH = 50
QUIET_SECONDS = 60.0  # between two lines about messages that the broker gave up for the same reason

BROUGHT_BACK = Counter(
    "orders_worker_brought_back_total", "Orders whose message was lost, and that got another, by the reason", ["reason"]
)
# The limit behind each of RabbitMQ's reasons. An order is not at fault for any of them.
LIMITS = {"expired": "message-ttl", "maxlen": "max-length", "delivery_limit": "delivery-limit"}


class DeadLetterMover:
    """Owns the consumer of the dead-letter queue and the messages in hand."""

    def __init__(
        self,
        amqp_url: str,
        store: Callable[[DeadLetter], Awaitable[BroughtBack | None]],
        cause: Callable[[str], str],
    ) -> None:
        """`store` returns once the dead letter is committed, or its order's next message.

        `cause` returns which policy sets a limit on the work queue. `stored` and `brought_back` count from the start.
        """
        self.store = store
        self.cause = cause
        self.consumer = Consumer(amqp_url, DEAD_QUEUE, PREFETCH, self._take)
        self.stored = 0
        self.brought_back = 0
        self._quiet_until: dict[str, float] = {}  # by reason
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
        given_up = self._given_up(delivery)
        back = await self.store(DeadLetter(delivery.body, delivery.size, given_up))
        if back is None:
            self.stored += 1
            log.warning("a dead letter is stored: %s", _name_of(delivery))
        elif back.seconds is not None:
            self.brought_back += 1
            BROUGHT_BACK.labels(back.reason).inc()
            self._warn(given_up.cause if given_up else UNEXPLAINED, back)
        delivery.ack()

    def _given_up(self, delivery: Delivery) -> GivenUp | None:
        reason = delivery.reason_of_death(WORK_QUEUE)
        if reason not in LIMITS:
            return None  # a worker rejected it, or nothing is known of it
        return GivenUp(reason, self.cause(LIMITS[reason]), continue_trace(delivery.header("traceparent")))

    def _warn(self, cause: str, back: BroughtBack) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._quiet_until.get(back.reason, 0.0):
            self._quiet_until[back.reason] = now + QUIET_SECONDS
            log.warning(
                "messages of %s are in %s (%s): %s; their orders are not at fault and come back, %s in %.0f s",
                WORK_QUEUE, DEAD_QUEUE, back.reason, cause, back.order_id, back.seconds or 0.0,
            )  # fmt: skip


def _name_of(delivery: Delivery) -> str:
    """Return the name of a message for the log; one that has no order id is named by its fault."""
    try:
        return f"the message of order {work_message.parse(delivery.body, delivery.size).order_id}"
    except InvalidMessage as invalid:
        return f"{invalid.kind}: {invalid}"
