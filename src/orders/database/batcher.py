"""Many callers, one statement: whatever waits while the last statement was in flight is the next one.

A lone caller waits for nobody, and under load the batches grow by themselves. A batch runs in a task of its own, on a
connection of its own, so that a caller who goes away cancels nobody else's work.

Most of what a batch costs does not depend on its size, so under load they are kept from being small. One writer is at
work at a time, as long as it is quick: two would halve the batches. Another one helps when a full batch is waiting, or
the statement in flight is slow. And where callers wait already when a batch ends, the next one waits for those who were
in it, who are likely to come again at once: no longer than the last statement took.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import msgspec
import psycopg
from prometheus_client import Counter, Gauge, Histogram
from psycopg import AsyncConnection

from orders.database import postgres
from orders.database.errors import ErrorClass, classify
from orders.model.error_text import first_line
from orders.model.errors import OrdersError, Overloaded, Refused, Unavailable
from orders.runtime import timeouts
from orders.runtime.crash import stop_the_process_if_it_crashed
from orders.runtime.retry_pauses import backoff

log = logging.getLogger(__name__)

SLOW_SECONDS = 0.02  # a statement that takes longer is waited for by nobody but its own callers
GATHER_SECONDS = 0.01  # the longest that callers wait for the next ones
GATHER_SHARE = 0.9  # of those who were there just before: some do not come again

Item = TypeVar("Item")
Answer = TypeVar("Answer")

BATCH_ROWS = Histogram(
    "orders_batch_rows", "Rows in one statement", ["statement"], buckets=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
)
QUEUE_SECONDS = Histogram(
    "orders_batch_wait_seconds",
    "From asking to the statement's start, for the oldest of a batch",
    ["statement"],
    buckets=[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2],
)
STATEMENT_SECONDS = Histogram(
    "orders_batch_seconds",
    "Duration of one statement and its commit",
    ["statement"],
    buckets=[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2],
)
CONNECTIONS = Gauge("orders_batch_connections", "Database connections that are open", ["statement"])
WAITING = Gauge("orders_batch_waiting", "Rows that wait for a statement, or are in one", ["statement"])
RERUNS = Counter("orders_batch_reruns_total", "Batches run again, by why", ["statement", "why"])


def most_rows(error_class: ErrorClass | None, ran: int, before: int, limit: int) -> int:
    """Decide how many rows the next run may have, after one of so many when so many were allowed.

    A batch that is too much for its deadline would be so again: it is halved until it gets through, and what comes
    after it may be larger each time.
    """
    if error_class is ErrorClass.TOO_SLOW:
        return max(1, ran // 2)
    return min(limit, 2 * before) if error_class is None else before


def rows_to_wait_for(ran: int, waiting: int, limit: int) -> int:
    """Decide with how many rows the next batch begins at once, after one of so many while so many wait; 0: as it is."""
    hoped_for = min(round(GATHER_SHARE * (ran + waiting)), limit)
    return hoped_for if 0 < waiting < hoped_for else 0


def gather_seconds(took: float) -> float:
    """Decide how long the next batch may wait for more rows, after a statement that took so long."""
    return min(took, GATHER_SECONDS)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of one kind of batch; sizes are bytes, times are seconds."""

    writers: int = 1
    batch_rows: int = 64
    batch_bytes: int = 4 << 20
    queue_rows: int = 4000
    queue_bytes: int = 64 << 20
    patience: float | None = None  # how long a caller waits; None: for ever
    statement_seconds: float = timeouts.STATEMENT_SECONDS  # then the connection is severed and the batch run again


class _Waiting(Generic[Item, Answer]):
    """An item and whoever waits for its answer."""

    __slots__ = ("answer", "item", "since", "size")

    def __init__(self, item: Item, size: int, loop: asyncio.AbstractEventLoop) -> None:
        self.item = item
        self.size = size
        self.since = loop.time()
        self.answer: asyncio.Future[Answer] = loop.create_future()


Run = Callable[[AsyncConnection, Sequence[Item]], Awaitable[Sequence[Answer | OrdersError]]]
Mend = Callable[[AsyncConnection], Awaitable[None]]


class Batcher(Generic[Item, Answer]):
    """Run `run` over the items of all callers that wait, a batch at a time.

    `run` gets an autocommit connection and the items, and returns an answer or an OrdersError for each, in their order.
    It must be harmless to repeat: a batch whose outcome is unknown is run again.
    """

    def __init__(
        self,
        name: str,
        url: str,
        run: Run[Item, Answer],
        limits: Limits,
        mend: Mend | None = None,
        session: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.url = url
        self.run = run
        self.limits = limits
        self.mend = mend
        self.session = session or {}  # settings of its connections
        self.connections = 0  # how many writers have one at this moment
        self.stopping = False
        self._alive = limits.writers
        self._queue: deque[_Waiting[Item, Answer]] = deque()
        self._rows = 0  # waiting or in flight
        self._bytes = 0
        self._running = 0  # statements in flight
        self._slow = 0  # those of them that take long
        self._idle: list[asyncio.Future[None]] = []
        self._gathering: asyncio.Future[None] | None = None  # set when as many wait as the next batch hopes for
        self._hoped_for = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._batch_rows = BATCH_ROWS.labels(name)
        WAITING.labels(name).set_function(lambda: self._rows)
        self._queue_seconds = QUEUE_SECONDS.labels(name)
        self._statement_seconds = STATEMENT_SECONDS.labels(name)

    async def __aenter__(self) -> "Batcher[Item, Answer]":
        self._tasks = [
            asyncio.create_task(self._write(), name=f"{self.name}-{number}") for number in range(self.limits.writers)
        ]
        for task in self._tasks:
            task.add_done_callback(stop_the_process_if_it_crashed)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Let the writers finish what waits, for as long as its callers are patient."""
        self.stopping = True
        self._wake(all_of_them=True)
        await asyncio.gather(*self._tasks)

    def patience_ends(self) -> float | None:
        """Return when the patience of a caller ends who comes now, in the loop's time; None: never."""
        patience = self.limits.patience
        return None if patience is None else asyncio.get_running_loop().time() + patience

    async def __call__(self, item: Item, size: int = 0, until: float | None = None) -> Answer:
        """Wait for the batch that takes the item, and return its answer.

        `until` is when the caller's patience ends, if it does not begin now: it is one for all that a caller asks.

        Raises what `run` returned for the item; Refused when the database refuses this very row; Overloaded at once
        when too much is waiting; Unavailable when the patience ends first: the item is then stored at most once, or
        not at all.
        """
        limits = self.limits
        if self.stopping or self._rows >= limits.queue_rows or self._bytes + size > limits.queue_bytes:
            raise Overloaded
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Item, Answer] = _Waiting(item, size, loop)
        until = until or self.patience_ends()
        timer = None if until is None else loop.call_at(until, _settle, waiting, Unavailable())
        self._queue.append(waiting)
        self._rows += 1
        self._bytes += size
        if self._gathering is not None:
            if len(self._queue) >= self._hoped_for and not self._gathering.done():
                self._gathering.set_result(None)
        elif self._running == self._slow or len(self._queue) >= limits.batch_rows:
            self._wake()
        try:
            return await waiting.answer
        finally:
            if timer is not None:
                timer.cancel()
            self._rows -= 1
            self._bytes -= size

    def _wake(self, *, all_of_them: bool = False) -> None:
        while self._idle:
            idle = self._idle.pop()
            if not idle.done():
                idle.set_result(None)
                if not all_of_them:
                    return

    def _take(self, most: int) -> list[_Waiting[Item, Answer]]:
        """Take from the queue what fits one batch, leaving out those whose callers have gone."""
        batch: list[_Waiting[Item, Answer]] = []
        size = 0
        while self._queue and len(batch) < most:
            if batch and size + self._queue[0].size > self.limits.batch_bytes:
                break
            waiting = self._queue.popleft()
            if not waiting.answer.done():
                batch.append(waiting)
                size += waiting.size
        if self._queue:
            self._wake()
        return batch

    async def _write(self) -> None:
        """Own one connection: run batch after batch on it, and make it anew whenever it is lost."""
        loop = asyncio.get_running_loop()
        conn: AsyncConnection | None = None
        pauses = backoff()
        told = ""
        batch: list[_Waiting[Item, Answer]] = []
        most = self.limits.batch_rows
        try:
            while True:
                if conn is None:
                    if self.stopping and not self._queue and not batch:
                        return
                    try:
                        conn = await postgres.connect(self.url, f"orders-{self.name}", **self.session)
                    except psycopg.Error as error:
                        if (why := first_line(error)) != told:  # once for each trouble, not for each try
                            log.warning("%s: no connection: %s", self.name, why)
                        told = why
                        if self.stopping:  # nobody can be helped any more
                            for waiting in (*batch, *self._queue):
                                _settle(waiting, Unavailable())
                        batch = [waiting for waiting in batch if not waiting.answer.done()]
                        self._queue = deque(waiting for waiting in self._queue if not waiting.answer.done())
                        await asyncio.sleep(next(pauses))
                        continue
                    told = ""
                    self.connections += 1
                    CONNECTIONS.labels(self.name).set(self.connections)
                batch = [waiting for waiting in batch if not waiting.answer.done()] or self._take(most)
                if not batch:
                    if self.stopping:
                        return
                    idle = loop.create_future()
                    self._idle.append(idle)
                    await idle
                    continue
                if len(batch) > most:
                    self._queue.extendleft(reversed(batch[most:]))
                    del batch[most:]
                self._batch_rows.observe(len(batch))
                self._queue_seconds.observe(loop.time() - batch[0].since)
                started = loop.time()
                with self._in_flight():
                    error_class = await self._run(conn, batch)
                most = most_rows(error_class, len(batch), most, self.limits.batch_rows)
                if error_class is None:
                    await self._gather(len(batch), most, loop.time() - started)
                    batch = []
                    pauses = backoff()
                    continue
                if error_class in {ErrorClass.CONNECTION_LOST, ErrorClass.TOO_SLOW}:
                    self.connections -= 1
                    CONNECTIONS.labels(self.name).set(self.connections)
                    await postgres.close(conn)
                    conn = None
                if self._queue:
                    self._wake()
                await asyncio.sleep(next(pauses))
        finally:
            self._alive -= 1
            self._let_go_of(batch)
            if conn is not None:
                self.connections -= 1
                await postgres.close(conn)

    def _let_go_of(self, batch: Iterable[_Waiting[Item, Answer]]) -> None:
        """Answer those whom a crash, which ends the process, leaves without a writer; without one there is nobody."""
        for waiting in batch:
            _settle(waiting, Unavailable())
        if not self._alive:
            self.stopping = True
            for waiting in self._queue:
                _settle(waiting, Unavailable())

    @contextlib.contextmanager
    def _in_flight(self) -> Iterator[None]:
        """Have another writer take over what waits, should the block take long."""
        is_slow = False

        def slow() -> None:
            nonlocal is_slow
            is_slow = True
            self._slow += 1
            if self._queue:
                self._wake()

        self._running += 1
        timer = asyncio.get_running_loop().call_later(SLOW_SECONDS, slow)
        try:
            yield
        finally:
            timer.cancel()
            self._running -= 1
            self._slow -= is_slow

    async def _gather(self, ran: int, most: int, took: float) -> None:
        """After a batch of so many, which took so long: let the next one grow, if callers wait for it already."""
        self._running += 1
        # Twice around the loop: what has come meanwhile, and is read only now, belongs to the next batch.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        hoped_for = rows_to_wait_for(ran, len(self._queue), most)
        if hoped_for and self._bytes < self.limits.batch_bytes and self._gathering is None and not self.stopping:
            self._hoped_for = hoped_for
            self._gathering = asyncio.get_running_loop().create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(gather_seconds(took)):
                    await self._gathering
            self._gathering = None
        self._running -= 1

    async def _run(self, conn: AsyncConnection, batch: list[_Waiting[Item, Answer]]) -> ErrorClass | None:
        """Run a batch and answer its callers; return None when it is done with, else what to do before another go."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            with postgres.deadline(conn, self.limits.statement_seconds):
                answers = await self.run(conn, [waiting.item for waiting in batch])
        except (psycopg.Error, ValueError, OverflowError) as error:
            error_class = classify(error)
            if error_class is ErrorClass.CONNECTION_LOST and loop.time() >= started + self.limits.statement_seconds:
                error_class = ErrorClass.TOO_SLOW
            RERUNS.labels(self.name, error_class.name.lower()).inc()
            if error_class is ErrorClass.ONE_IS_GUILTY:
                if len(batch) > 1:
                    return await self._run_one_by_one(conn, batch)
                log.warning("%s: a row is refused: %s", self.name, error)
                _settle(batch[0], Refused(first_line(error)))
                return None
            log.warning("%s: %s: %s", self.name, error_class.value, first_line(error))
            if error_class is ErrorClass.PARTITION_MISSING:
                return await self._mend(conn)
            return error_class
        self._statement_seconds.observe(loop.time() - started)
        for waiting, answer in zip(batch, answers, strict=True):
            _settle(waiting, answer)
        return None

    async def _run_one_by_one(
        self, conn: AsyncConnection, batch: Iterable[_Waiting[Item, Answer]]
    ) -> ErrorClass | None:
        """Find the guilty rows; the others are written. What a lost connection leaves is run again as a batch."""
        for waiting in batch:
            if not waiting.answer.done() and (error_class := await self._run(conn, [waiting])) is not None:
                return error_class
        return None

    async def _mend(self, conn: AsyncConnection) -> ErrorClass:
        if self.mend is None:
            return ErrorClass.CONNECTION_LOST
        try:
            with postgres.deadline(conn, self.limits.statement_seconds):
                await self.mend(conn)
        except psycopg.Error as error:
            log.warning("%s: could not make a partition: %s", self.name, first_line(error))
            return ErrorClass.CONNECTION_LOST
        return ErrorClass.RUN_AGAIN


def _settle(waiting: _Waiting[Item, Answer], answer: Answer | OrdersError) -> None:
    if waiting.answer.done():  # the caller's patience is over
        return
    if isinstance(answer, OrdersError):
        waiting.answer.set_exception(answer)
    else:
        waiting.answer.set_result(answer)
