"""Work a delivery: claim its order, run the handler, write the end or the retry, then ack.

The ack always follows the commit, so a worker that dies at any moment causes a repeat, never a loss.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
from prometheus_client import Counter, Gauge, Histogram

from orders.broker.consumer import Delivery
from orders.database.claim_orders import Claimed, Forged, Held, Postponed, Settled, Unknown
from orders.database.dead_letters_table import DeadLetterKind, PoisonMark
from orders.database.finish_orders import Finished, finish_of
from orders.database.postpone_orders import Postpone
from orders.database.row_locks import Busy
from orders.model import work_message
from orders.model.traceparent import continue_trace
from orders.model.work_message import InvalidMessage, WorkMessage
from orders.runtime.retry_pauses import backoff
from orders.work import decision
from orders.work.batches import WorkBatches
from orders.work.decision import Decision
from orders.work.runner import Job, Run, RunOutcome

log = logging.getLogger(__name__)

HELD_SECONDS = 1.0  # until the next claim of an order that another worker holds
LAST_WORDS_SECONDS = 0.5  # for cancelled handlers to end, when the worker stops

SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60]
IN_HAND = Gauge("orders_worker_in_hand", "Orders in hand")
FINISHED = Counter("orders_worker_finished_total", "Orders finished, by status", ["status"])
POSTPONED = Counter("orders_worker_postponed_total", "Failures of the handler itself that lead to a retry")
DELIVERED = Counter("orders_worker_deliveries_total", "Deliveries taken")
REDELIVERED = Counter("orders_worker_redelivered_total", "Deliveries that the broker had made before")
SUSPECTS = Counter("orders_worker_suspects_total", "Orders that were in hand when a worker vanished")
DEAD_LETTERED = Counter("orders_worker_dead_lettered_total", "Messages handed to the dead letters, by kind", ["kind"])
TRANSIENT_FAILURES = Counter(
    "orders_worker_transient_failures_total", "Handlers whose transaction ended because the database went away"
)
TRANSIENT_FAILURES_OLD_NAME = Counter(
    "orders_worker_weather_total", "Deprecated since 0.1: orders_worker_transient_failures_total"
)
HANDLER_SECONDS = Histogram("orders_worker_handler_seconds", "Duration of one run of the handler", buckets=SECONDS)
PLACED_TO_FINISHED = Histogram(
    "orders_placed_to_finished_seconds", "From placing (or redriving) to the end, on the database's clock",
    ["status"], buckets=[*SECONDS, 300, 3600],
)  # fmt: skip


class Rejection(msgspec.Struct, frozen=True):
    """Why a message goes to the dead letters."""

    kind: DeadLetterKind
    reason: str


class WorkerCounters(msgspec.Struct):
    """How many orders and deliveries this worker has brought to each end since it started."""

    done: int = 0
    failed: int = 0
    postponed: int = 0
    redelivered: int = 0
    dead_lettered: int = 0


class OrdersInHand:
    """Owns the orders in hand, each in a task of its own."""

    def __init__(
        self, batches: WorkBatches, run: Run, run_isolated: Run, *, max_failures: int, max_running: int | None = None
    ) -> None:
        """Take deliveries from now on; `take` gets each one.

        `run` runs a handler, `run_isolated` one that may end its process. `max_failures`: WORK_MAX_ATTEMPTS.
        `max_running`: how many handlers may run concurrently; None: all orders in hand.
        """
        self.batches = batches
        self.run = run
        self.run_isolated = run_isolated
        self.max_failures = max_failures
        self.counters = WorkerCounters()
        self.crashed = asyncio.Event()
        self._may_run = asyncio.Semaphore(max_running) if max_running else contextlib.nullcontext()
        self._draining = False
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._repeats: dict[UUID, list[Delivery]] = {}  # order id -> further deliveries of an order in hand
        self._claimed: set[UUID] = set()
        self._poison: dict[UUID, str] = {}  # event id -> reason: a lost reject brings the event again
        self._crash: BaseException | None = None

    @property
    def in_hand(self) -> int:
        """The number of orders in hand."""
        return len(self._tasks)

    @property
    def order_ids(self) -> list[UUID]:
        """The orders in hand."""
        return list(self._tasks)

    def take(self, delivery: Delivery) -> None:
        """Work a delivery in a task of its own; return at once.

        A delivery that comes during `drain` is ignored, and returns to the queue with its channel: a handler that
        started now would be cut off, perhaps after its effect.
        """
        if self._draining:
            return
        DELIVERED.inc()
        if delivery.redelivered:
            REDELIVERED.inc()
            self.counters.redelivered += 1
        try:
            message = work_message.parse(delivery.body, delivery.size)
        except InvalidMessage as invalid:
            self._reject(delivery, Rejection(invalid.kind, str(invalid)))
            return
        if (reason := self._poison.get(message.event_id)) is not None:
            self._reject(delivery, Rejection("deadly", reason))
            return
        self._start(message, delivery)

    async def drain(self, seconds: float, sever: Callable[[], None]) -> Sequence[UUID]:
        """Finish the orders in hand within `seconds`, then cancel the rest; return the ids that were in hand at first.

        Orders that wait for their claim are cancelled at once. `sever` ends the transactions of handlers.
        """
        self._draining = True
        in_hand = list(self._tasks)
        for order_id, task in self._tasks.items():
            if order_id not in self._claimed:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=seconds)
        sever()
        left = list(self._tasks.values())
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=LAST_WORDS_SECONDS)
        return in_hand

    def raise_crash(self) -> None:
        """Raise the first unexpected error of an order's task, if there was one."""
        if self._crash is not None:
            raise self._crash

    def _start(self, message: WorkMessage, delivery: Delivery) -> None:
        order_id = message.order_id
        if order_id in self._tasks:
            # The broker delivers again what belongs to a lost channel: dropped here, it cannot pile up.
            repeats = self._repeats.get(order_id, ())
            self._repeats[order_id] = [repeat for repeat in repeats if not repeat.lost] + [delivery]
            return
        task = asyncio.create_task(self._work(message, delivery), name=f"order {order_id}")
        self._tasks[order_id] = task
        IN_HAND.set(len(self._tasks))

        def end(task: asyncio.Task[None]) -> None:
            del self._tasks[order_id]
            self._claimed.discard(order_id)
            self.batches.claim.locked.end(order_id)
            IN_HAND.set(len(self._tasks))
            if not task.cancelled():
                error = task.exception()
            else:  # only `drain` may cancel; otherwise the order would stay in hand for ever
                error = None if self._draining else RuntimeError(f"order {order_id} was cancelled by its own handler")
            if error is not None:
                self._crash = self._crash or error
                self.crashed.set()
                return
            for repeat in self._repeats.pop(order_id, ()):
                if not repeat.lost:
                    self.take(repeat)  # mostly, the order has ended

        task.add_done_callback(end)

    async def _work(self, message: WorkMessage, delivery: Delivery) -> None:
        rejection = await self._work_order(message, delivery)
        if rejection is None:
            delivery.ack()
        else:
            self._reject(delivery, rejection)

    def _reject(self, delivery: Delivery, rejection: Rejection) -> None:
        log.warning("to the dead letters: %s: %s", rejection.kind, rejection.reason)
        DEAD_LETTERED.labels(rejection.kind).inc()
        self.counters.dead_lettered += 1
        delivery.reject()

    async def _work_order(self, message: WorkMessage, delivery: Delivery) -> Rejection | None:
        """Work an order until its end or its retry is committed, or nothing is left to do.

        Returns None to ack the message, or why it goes to the dead letters.
        """
        traceparent = continue_trace(delivery.header("traceparent"))
        suspect = False
        pauses = backoff()
        locked = self.batches.claim.locked
        while True:
            async with self._may_run:
                claim = await self.batches.claim(message)
                if isinstance(claim, Claimed):
                    locked.end(message.order_id)
                    self._claimed.add(message.order_id)
                    suspect = suspect or claim.suspect
                    job = Job(claim, traceparent)
                    outcome = await self._run(job, suspect=suspect)
            if isinstance(claim, Claimed):
                # Not among the handlers that run: it may wait for the order's row.
                step = decision.decide(outcome, claim.failures, self.max_failures)
                await self._act(step, job, message, delivery)
                if isinstance(step, decision.MarkPoison):
                    return Rejection("deadly", step.reason)
                if not isinstance(step, decision.RunAgain):
                    return None
            match claim:
                case Settled() | Postponed():
                    return None
                case Unknown():
                    return Rejection("unknown", "there is no such order")
                case Forged():
                    return Rejection("forged", "its order waits for another event")
                case Busy():
                    await asyncio.sleep(locked.pause(message.order_id, claim))
                case Held():
                    await asyncio.sleep(HELD_SECONDS)
                case Claimed():
                    await asyncio.sleep(next(pauses))

    async def _run(self, job: Job, *, suspect: bool) -> RunOutcome:
        if suspect:
            SUSPECTS.inc()
        started = asyncio.get_running_loop().time()
        outcome = await (self.run_isolated if suspect else self.run)(job)
        HANDLER_SECONDS.observe(asyncio.get_running_loop().time() - started)
        return outcome

    async def _act(self, step: Decision, job: Job, message: WorkMessage, delivery: Delivery) -> None:
        """Carry out a decision: write it, and return once that is committed."""
        match step:
            case decision.EndOrder(reason, kind, error, details):
                finish = finish_of(job.claimed, job.traceparent, reason, kind, error, details)
                finished = await self.batches.finish(finish)
                if finished is not None and reason is not None:
                    log.warning("order %s failed, %s: %s", message.order_id, kind, reason)
                self._count_end(finished)
            case decision.OrderEnded(finished):
                self._count_end(finished)
            case decision.RetryLater(seconds, reason, error):
                until = datetime.now(UTC) + timedelta(seconds=seconds)
                log.info("order %s waits %.1f s, until %s: %s", message.order_id, seconds, f"{until:%FT%TZ}", reason)
                POSTPONED.inc()
                self.counters.postponed += 1
                await self.batches.postpone(
                    Postpone(job.claimed, message, seconds, delivery.body, job.traceparent, error, reason)
                )
            case decision.RunAgain(reason):
                log.warning("order %s: its transaction is lost: %s", message.order_id, reason)
                TRANSIENT_FAILURES.inc()
                TRANSIENT_FAILURES_OLD_NAME.inc()
            case decision.MarkPoison(reason):
                log.warning("order %s is poison and will fail: %s", message.order_id, reason)
                await self.batches.store(PoisonMark(message.event_id, reason))
                self._poison[message.event_id] = reason

    def _count_end(self, finished: Finished | None) -> None:
        if finished is None:
            return  # an earlier run wrote the end, or another claim owns the order now
        if finished.status == "done":
            self.counters.done += 1
        else:
            self.counters.failed += 1
        FINISHED.labels(finished.status).inc()
        PLACED_TO_FINISHED.labels(finished.status).observe(finished.seconds)
