"""What is done with one delivery: claim the order, run its handler, finish it, ack."""

import asyncio
import logging
from uuid import UUID

import msgspec
from prometheus_client import Counter, Gauge, Histogram

from orders import events
from orders.backoff import backoff
from orders.batching import Batching, first_line
from orders.claim_orders import Claim, Claimed, Held, Settled, Unknown, Wanted
from orders.consumer import Delivery
from orders.errors import OrdersError
from orders.finish_orders import Finish, finish_of
from orders.handlers import Handler
from orders.traceparent import continue_trace

log = logging.getLogger(__name__)

HELD_SECONDS = 1.0  # until we look again whether an order that another worker has is still being worked

IN_HAND = Gauge("orders_worker_in_hand", "Deliveries in hand")
FINISHED = Counter("orders_worker_finished_total", "Orders finished, by status", ["status"])
HANDLER_FAILURES = Counter("orders_worker_handler_failures_total", "Failures of the handler itself")
REDELIVERED = Counter("orders_worker_redelivered_total", "Deliveries that the broker had made before")
REJECTED = Counter("orders_worker_rejected_total", "Messages handed to the dead letters")
PLACED_TO_DONE = Histogram(
    "orders_placed_to_finished_seconds", "From an order's placement to the end of its handler",
    buckets=[0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60],
)  # fmt: skip


class Poison(OrdersError):
    """This message can never be worked."""


def order_id_of(body: bytes) -> UUID:
    """Return the order that a message is about; raise Poison if it is no event that asks for work."""
    try:
        envelope = events.open_envelope(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Poison(f"not an event: {first_line(error)}") from None
    if envelope.type not in events.REQUIRED:
        raise Poison(f"an event of type {envelope.type} asks for no work")
    if envelope.subject != str(envelope.data.order_id):
        raise Poison("its subject is not its order")
    return envelope.data.order_id


class Work:
    """Owns the deliveries in hand, each in a task of its own."""

    def __init__(
        self,
        claim: Batching[Wanted, Claim],
        finish: Batching[Finish, bool],
        handler: Handler,
        *,
        timeout: float,
        max_failures: int,
    ) -> None:
        self.claim = claim
        self.finish = finish
        self.handler = handler
        self.timeout = timeout
        self.max_failures = max_failures
        self.done = 0
        self.failed = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._orders: dict[UUID, asyncio.Event] = {}  # each set when its delivery is over
        self._draining = False
        self._crash: BaseException | None = None
        self.crashed = asyncio.Event()

    @property
    def in_hand(self) -> int:
        """How many deliveries are in hand."""
        return len(self._tasks)

    def take(self, delivery: Delivery) -> None:
        """Work a delivery in the background.

        One that still comes while we drain is left alone: it goes back to the queue with its channel. A handler that
        was started for it would be cut off, perhaps after its effect.
        """
        if self._draining:
            return
        task = asyncio.create_task(self._work(delivery), name="delivery")
        self._tasks.add(task)
        IN_HAND.set(len(self._tasks))
        task.add_done_callback(self._ended)

    async def drain(self, seconds: float) -> int:
        """Wait for what is in hand, then let go of the rest; return how many deliveries that were."""
        self._draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return len(left)

    def raise_crash(self) -> None:
        """Raise what ended a delivery's task, if anything but its own end did."""
        if self._crash is not None:
            raise self._crash

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        IN_HAND.set(len(self._tasks))
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crash = error
            self.crashed.set()

    async def _work(self, delivery: Delivery) -> None:
        if delivery.redelivered:
            REDELIVERED.inc()
        try:
            order_id = order_id_of(delivery.body)
            # A second delivery of an order that is in hand here waits for the first, and then finds it finished.
            while (other := self._orders.get(order_id)) is not None:
                await other.wait()
            over = self._orders[order_id] = asyncio.Event()
            try:
                await self._work_order(order_id, continue_trace(delivery.header("traceparent")))
            finally:
                del self._orders[order_id]
                over.set()
        except Poison as error:
            log.warning("to the dead letters: %s", error)
            REJECTED.inc()
            await delivery.reject()
            return
        await delivery.ack()

    async def _work_order(self, order_id: UUID, traceparent: str) -> None:
        """Bring an order to its end, however often its handler fails on the way."""
        wanted = Wanted(order_id)
        pauses = backoff(first=0.2, most=30)
        while True:
            claim = await self.claim(wanted)
            match claim:
                case Settled():
                    return
                case Unknown():
                    raise Poison("there is no such order")
                case Held():
                    await asyncio.sleep(HELD_SECONDS)
                    wanted = Wanted(order_id)
                case Claimed():
                    failure = await self._handle(claim)
                    if failure is None:
                        await self._finish(finish_of(claim, traceparent))
                        return
                    HANDLER_FAILURES.inc()
                    log.warning("order %s: its handler failed: %s", order_id, failure)
                    if claim.failures + 1 >= self.max_failures:
                        await self._finish(finish_of(claim, traceparent, failure))
                        return
                    await asyncio.sleep(next(pauses))
                    wanted = Wanted(order_id, failed=True)

    async def _handle(self, claimed: Claimed) -> str | None:
        """Run the handler; return why it failed, or None."""
        try:
            async with asyncio.timeout(self.timeout):
                await self.handler(claimed.order)
        except TimeoutError:
            return f"the handler took longer than {self.timeout:g} s"
        except Exception as error:  # whatever a handler raises is its own failure
            return f"{type(error).__name__}: {first_line(error)}"
        return None

    async def _finish(self, finish: Finish) -> None:
        if not await self.finish(finish):
            return  # by an earlier run, or by another worker who claimed it since
        if finish.failure_reason is None:
            self.done += 1
        else:
            self.failed += 1
        FINISHED.labels("failed" if finish.failure_reason else "done").inc()
        PLACED_TO_DONE.observe((finish.claimed.order.updated_at - finish.claimed.order.created_at).total_seconds())
