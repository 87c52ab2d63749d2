"""One run of `orders reconcile`: copy, compare, read suspects again, and repair if asked to.

Two passes copy orders and outbox rows of a range of time to a scratch database, a page at a time. Whatever looks wrong
there is read again until the answer is certain: an order under way has moved on meanwhile, and a young fault has grown
old. The run never joins and never locks the tables of the live system beside it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from functools import partial
from itertools import islice
from typing import TypeVar
from uuid import UUID

import msgspec
import psycopg
from aiormq.exceptions import ChannelClosed
from psycopg import AsyncConnection

from orders.broker import rabbitmq
from orders.broker.topology import WORK_QUEUE
from orders.database import postgres
from orders.database.notify import NOTIFY
from orders.database.resend_messages import LostMessage, resend_messages
from orders.model.errors import OrdersError, Unavailable
from orders.model.ids import lowest_id
from orders.runtime.retry_pauses import backoff
from orders.runtime.settings import ReconcileSettings
from orders.tools.actor import actor
from orders.tools.reconcile import queries, rules
from orders.tools.reconcile.rules import Cause, Fault, FaultKind, OutboxCoverage, RetryWait
from orders.tools.reconcile.scratch import OrderHistory, ScratchDatabase

T = TypeVar("T")

PAGE = 5000  # orders or outbox ids per statement
STATEMENT_SECONDS = 8.0
PATIENCE_SECONDS = 60.0  # how long to try while the database does not answer
# The longest time between drawing an outbox id and committing its row. The second pass starts so much before the first.
COMMIT_SECONDS = 60.0
ROUND_SECONDS = 1.0
REPAIR_ROWS = 200

# Faults that a message to the work queue repairs.
REPAIRABLE: frozenset[Cause] = frozenset({"undelivered", "skipped", "unworked"})
# Faults of orders whose message may still wait in the work queue: the tables cannot tell.
PERHAPS_WAITING: frozenset[Cause] = frozenset({"undelivered", "unworked"})


class QueueMissing(OrdersError):
    """The queue orders.work does not exist: run `orders topology`."""


class Span(msgspec.Struct, frozen=True):
    """The orders to compare: those placed between two times, which their ids (UUIDv7) tell. None: no bound."""

    since: datetime | None
    until: datetime | None

    @property
    def first(self) -> UUID:
        return lowest_id(self.since) if self.since else UUID(int=0)

    @property
    def below(self) -> UUID:
        return lowest_id(self.until) if self.until else UUID(int=2**128 - 1)


class ReconcileReport(msgspec.Struct, kw_only=True):
    """The result, as `--json` prints it. `findings` holds the first faults, `counts` counts all of them by kind.

    `retries` holds the first of the orders that wait for a retry, `waiting_for_retry` counts all of them.
    """

    ok: bool = True
    since: datetime | None
    until: datetime | None
    orders: int = 0  # compared
    rows: int = 0  # of the outbox, compared
    counts: dict[FaultKind, int] = msgspec.field(
        default_factory=lambda: dict.fromkeys(("lost", "stuck", "doubled", "out_of_order"), 0)
    )
    waiting: int = 0  # orders that lack a message, while the queue holds enough for all of them
    queue_ready: int | None = None  # messages ready in the work queue; None without --broker
    waiting_for_retry: int = 0  # orders whose retry is not due yet: no fault
    repaired: int = 0  # messages sent again
    seconds: float = 0.0
    findings: list[Fault] = msgspec.field(default_factory=list)
    retries: list[RetryWait] = msgspec.field(default_factory=list)


class ReconcileOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command; `grace` is in seconds."""

    span: Span
    grace: float
    limit: int
    with_broker: bool
    repair: bool


class Reconciliation:
    """One run. It calls `progress` with a line for the user, often."""

    def __init__(self, settings: ReconcileSettings, options: ReconcileOptions, progress: Callable[[str], None]) -> None:
        self.settings = settings
        self.options = options
        self.progress = progress
        self.report = ReconcileReport(since=options.span.since, until=options.span.until)
        self._conn: AsyncConnection | None = None
        self._began = 0.0  # seconds since 1970, by the server's clock
        self._now = 0.0  # the server's clock when the suspects were read last
        self._coverage = OutboxCoverage(0.0)

    async def run(self) -> ReconcileReport:
        """Compare, repair if the options say so, and return the report.

        Raises Unavailable if the database, QueueMissing, BrokerUnavailable or AMQPError if the broker does not answer.
        """
        started = time.monotonic()
        try:
            with ScratchDatabase() as scratch:
                self._began = await self._ask(queries.clock)
                self._coverage = OutboxCoverage(await self._ask(queries.coverage_start))
                await self._copy_orders(scratch)
                await self._copy_rows(
                    scratch, None if self.options.span.since is None else self.options.span.since.timestamp()
                )
                self.progress("comparing")
                scratch.suspect(order_id for order_id, _ in self._faulty(scratch, of_suspects=False))
                await self._look_again(scratch)
                waits = self.options.with_broker and await self._may_wait_in_the_queue(scratch)
                self._count(scratch, waits)
                if self.options.repair:
                    await self._repair(scratch)
        finally:
            await postgres.close(self._conn)
        self.report.seconds = round(time.monotonic() - started, 3)
        return self.report

    async def _copy_orders(self, scratch: ScratchDatabase) -> None:
        above, below = UUID(int=max(0, self.options.span.first.int - 1)), self.options.span.below
        while page := await self._ask(partial(queries.orders, above=above, below=below, limit=PAGE)):
            scratch.add_orders(page)
            above = page[-1].order_id
            self.report.orders += len(page)
            self.progress(f"{self.report.orders} orders read")

    async def _copy_rows(self, scratch: ScratchDatabase, since: float | None) -> None:
        above, last = await self._ask(partial(queries.ids_since, since=since and since - 60))
        first_key, below_key = str(self.options.span.first), str(self.options.span.below)
        first = above
        while above < last:
            upto = min(above + PAGE, last)
            page = await self._ask(
                partial(queries.rows, above=above, upto=upto, first_key=first_key, below_key=below_key)
            )
            scratch.add_rows(row for row in page if _is_an_order(row.key))
            above = upto
            self.report.rows += len(page)
            self.progress(f"outbox rows read to {above - first} of {last - first}")

    def _faulty(self, scratch: ScratchDatabase, *, of_suspects: bool) -> Iterator[tuple[UUID, list[Fault]]]:
        for history in scratch.histories(of_suspects=of_suspects):
            if found := self._faults(history):
                yield history.order_id, found

    def _faults(self, history: OrderHistory) -> list[Fault]:
        """Return the faults of an order, except those that began after the time in which this run looks for faults."""
        found = rules.find_faults(*history, self._coverage, self._now)
        return [fault for fault in found if self._since(fault) <= self._began + self.options.grace]

    def _since(self, fault: Fault) -> float:
        """Return since when a fault is true. A time that lies ahead is that of an api's fast clock: the run's start."""
        if fault.since is None:
            return 0.0
        return fault.since if fault.since <= self._now else self._began

    async def _look_again(self, scratch: ScratchDatabase) -> None:
        """Read the suspects again until each is faultless or certainly faulty; the faulty ones stay suspects.

        Orders are read before outbox rows: an order's row and its event are one commit, so a later look at the outbox
        has the event.

        This ends after twice the grace: a fault that is younger than that belongs to an order that moves.
        """
        read = self.report.rows
        while True:
            for keys in scratch.suspects():
                scratch.renew_orders(keys, await self._ask(partial(queries.these_orders, order_ids=keys)))
            await self._copy_rows(scratch, self._began - COMMIT_SECONDS)
            for ids in scratch.rows_of_suspects():
                scratch.add_rows(await self._ask(partial(queries.these_rows, ids=ids)))
            self.report.rows = read
            self._now = await self._ask(queries.clock)
            self._coverage = OutboxCoverage(self._coverage.since, await self._ask(queries.requeues))

            young = 0

            def still_wrong() -> Iterator[UUID]:
                nonlocal young
                for history in scratch.histories(of_suspects=True):
                    if found := self._faults(history):
                        young += any(self._since(fault) > self._now - self.options.grace for fault in found)
                        yield history.order_id
                    elif wait := rules.retry_wait(history.order, self._now):
                        self._count_wait(wait)  # once: it is no suspect from here on

            scratch.suspect(still_wrong())
            if not young:
                return
            self.progress(f"{young} orders are under way: waiting until they end or are late")
            await asyncio.sleep(ROUND_SECONDS)

    def _count_wait(self, wait: RetryWait) -> None:
        self.report.waiting_for_retry += 1
        if len(self.report.retries) < self.options.limit:
            self.report.retries.append(wait)

    async def _may_wait_in_the_queue(self, scratch: ScratchDatabase) -> bool:
        """Return whether the queue has enough messages for all the orders that lack one."""
        self.report.queue_ready = await queue_depth(self.settings.amqp_url)
        lacking = sum(
            fault.cause in PERHAPS_WAITING for _, found in self._faulty(scratch, of_suspects=True) for fault in found
        )
        return 0 < lacking <= self.report.queue_ready

    def _count(self, scratch: ScratchDatabase, waits: bool) -> None:
        for _, found in self._faulty(scratch, of_suspects=True):
            for fault in found:
                if waits and fault.cause in PERHAPS_WAITING:
                    self.report.waiting += 1
                    continue
                self.report.ok = False
                self.report.counts[fault.kind] += 1
                if len(self.report.findings) < self.options.limit:
                    self.report.findings.append(fault)

    async def _repair(self, scratch: ScratchDatabase) -> None:
        """Send the messages of orders that lack nothing else. A message that still waits then comes twice: no harm."""
        repairable = (
            fault
            for _, found in self._faulty(scratch, of_suspects=True)
            for fault in found
            if {other.cause for other in found} <= REPAIRABLE
        )
        conn = await postgres.connect(self.settings.database_url, "orders-reconcile-repair")
        try:
            while chunk := list(islice(repairable, REPAIR_ROWS)):
                lost = [LostMessage(f.order_id, f.version, f.row_id) for f in chunk if f.row_id is not None]
                reason = f"orders reconcile --repair: {', '.join(sorted({fault.cause for fault in chunk}))}"
                with postgres.deadline(conn, STATEMENT_SECONDS):
                    self.report.repaired += await resend_messages(conn, WORK_QUEUE, lost, actor(conn.info.user), reason)
                self.progress(f"{self.report.repaired} messages sent again")
            with postgres.deadline(conn, STATEMENT_SECONDS):
                await conn.execute(NOTIFY)
        finally:
            await postgres.close(conn)

    async def _ask(self, question: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Return the answer of the database, on a new connection after each failure.

        Raises Unavailable if there is none within PATIENCE_SECONDS.
        """
        end = time.monotonic() + PATIENCE_SECONDS
        for pause in backoff():
            try:
                if self._conn is None:
                    self._conn = await postgres.connect(self.settings.database_url, "orders-reconcile")
                    with postgres.deadline(self._conn, STATEMENT_SECONDS):
                        await queries.read_only(self._conn)
                with postgres.deadline(self._conn, STATEMENT_SECONDS):
                    return await question(self._conn)
            except psycopg.OperationalError as error:
                await postgres.close(self._conn)
                self._conn = None
                if time.monotonic() > end:
                    raise Unavailable(f"the database does not answer: {str(error).splitlines()[0]}") from None
                await asyncio.sleep(pause)
        raise Unavailable


async def queue_depth(amqp_url: str) -> int:
    """Return the number of messages ready in the work queue; raise QueueMissing if it does not exist."""
    async with rabbitmq.connect(amqp_url, "orders-reconcile") as connection, asyncio.timeout(10):
        channel = await connection.channel()
        try:
            declared = await channel.queue_declare(WORK_QUEUE, passive=True)
        except ChannelClosed:
            raise QueueMissing from None
        return declared.message_count or 0


def _is_an_order(key: str) -> bool:
    try:
        return str(UUID(key)) == key
    except ValueError:
        return False
