"""Run the requests of many callers as one statement: a batch is whatever waits while the last statement is in flight.

A lone caller waits for no other, and under load the batches grow by themselves. A batch runs in a task and on a
connection of the batcher's own, so a caller that goes away cancels no other caller's work.

Most of the cost of a batch does not depend on its size, so under load the batcher avoids small ones. One writer works
at a time as long as its statements are quick: two would halve the batches. Another writer helps when a full batch is
waiting, or when the statement in flight is slow. If callers are waiting already when a batch ends, the next batch waits
for the callers of the last one, which are likely to come again at once; it waits no longer than the last statement
took.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec
import psycopg
from prometheus_client import Counter, Gauge, Histogram
from psycopg import AsyncConnection

from orders.database import postgres
from orders.database.errors import STATEMENT_ERRORS, ErrorClass, classify
from orders.database.row_locks import Busy, LockedOrders
from orders.model.error_text import first_line
from orders.model.errors import OrdersError, Overloaded, Refused, Unavailable
from orders.runtime import timeouts
from orders.runtime.crash import stop_the_process_if_it_crashed
from orders.runtime.retry_pauses import backoff

log = logging.getLogger(__name__)

SLOW_SECONDS = 0.02  # while a statement takes longer, another writer takes over what waits
GATHER_SECONDS = 0.01  # the longest that callers wait for the next ones
GATHER_SHARE = 0.9  # of the callers that were there just before: some do not come again

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


def next_max_rows(error_class: ErrorClass | None, batch_size: int, max_rows: int, limit: int) -> int:
    """Decide how many rows the next run may have, after a run of `batch_size` rows that might have had `max_rows`.

    `error_class` is None after a run that succeeded. A batch that was too large for its deadline would be too large
    again: it is halved until it gets through, and each later one may be twice as large, up to `limit`.
    """
    if error_class is ErrorClass.TOO_SLOW:
        return max(1, batch_size // 2)
    return min(limit, 2 * max_rows) if error_class is None else max_rows


def rows_to_wait_for(batch_size: int, waiting: int, limit: int) -> int:
    """Decide how many rows the next batch waits for, after one of `batch_size` while `waiting` wait; 0: do not wait."""
    hoped_for = min(round(GATHER_SHARE * (batch_size + waiting)), limit)
    return hoped_for if 0 < waiting < hoped_for else 0


def gather_seconds(elapsed_seconds: float) -> float:
    """Decide how long the next batch may wait for more rows, after a statement that took `elapsed_seconds`."""
    return min(elapsed_seconds, GATHER_SECONDS)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of one kind of batch."""

    writers: int = 1  # connections, each with a task of its own
    batch_rows: int = 64
    batch_bytes: int = 4 << 20
    queue_rows: int = 4000  # waiting or in flight; beyond it a caller gets Overloaded
    queue_bytes: int = 64 << 20
    patience: float | None = None  # seconds that a caller waits; None: for ever
    statement_seconds: float = timeouts.STATEMENT_SECONDS  # then the connection is severed and the batch run again
    idle_seconds: float | None = None  # without an item for this long, the connection is closed until the next one
    retry_busy: bool = True  # an item whose answer is Busy is set aside and runs again; False: its caller gets Busy


class _Waiting(Generic[Item, Answer]):
    """An item, and the future of its answer, for which the caller waits."""

    __slots__ = ("answer", "comes_back", "item", "since", "size")

    def __init__(self, item: Item, size: int, loop: asyncio.AbstractEventLoop) -> None:
        self.item = item
        self.size = size
        self.since = loop.time()
        self.answer: asyncio.Future[Answer] = loop.create_future()
        self.comes_back: asyncio.TimerHandle | None = None  # the next try, if another session has locked its row


class _Writer(Generic[Item, Answer]):
    """What one writer has: its connection, and the batch that it runs until every caller has an answer."""

    __slots__ = ("batch", "conn", "last_logged", "max_rows", "pauses")

    def __init__(self, max_rows: int) -> None:
        self.conn: AsyncConnection | None = None
        self.batch: list[_Waiting[Item, Answer]] = []
        self.max_rows = max_rows  # of the next run
        self.pauses = backoff()
        self.last_logged = ""  # once for each trouble, not for each try


Run = Callable[[AsyncConnection, Sequence[Item]], Awaitable[Sequence[Answer | OrdersError | Busy]]]
Mend = Callable[[AsyncConnection], Awaitable[None]]


class Batcher(Generic[Item, Answer]):
    """Runs `run` on the items of all callers that wait, a batch at a time.

    `run` gets an autocommit connection and the items, and returns an answer or an OrdersError for each, in their order.
    It must be harmless to repeat: a batch whose outcome is unknown is run again. An item for which it returns Busy is
    set aside, and comes back after a pause. `mend` adds the outbox's missing partition. `session` holds PostgreSQL
    settings of the connections.
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
        self.locked = LockedOrders(name)
        self._alive = limits.writers
        self._queue: deque[_Waiting[Item, Answer]] = deque()
        self._aside: set[_Waiting[Item, Answer]] = set()
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
        """Stop taking items, and let the writers finish those that wait, within their callers' patience."""
        self.stopping = True
        self._give_up_those_aside()
        self._wake(all_of_them=True)
        await asyncio.gather(*self._tasks)

    def patience_ends(self) -> float | None:
        """Return when the patience of a caller that comes now will end, in the loop's time; None: never."""
        patience = self.limits.patience
        return None if patience is None else asyncio.get_running_loop().time() + patience

    async def __call__(self, item: Item, size: int = 0, until: float | None = None) -> Answer:
        """Wait for the batch that takes the item, and return its answer.

        `size` is the item's size in bytes, nearly. `until` is when the caller's patience ends, in the loop's time, for
        a caller that asks for several items with one patience; without it the patience begins now.

        Raises the OrdersError that `run` returned for the item; Refused if the database refuses this very row;
        Overloaded at once if too much is waiting; Unavailable if the patience ends first: the item is then stored at
        most once, or not at all.
        """
        waiting = self._join(item, size)
        self._call_a_writer()
        until = until or self.patience_ends()
        timer = None if until is None else asyncio.get_running_loop().call_at(until, _settle, waiting, Unavailable())
        try:
            return await waiting.answer
        finally:
            if timer is not None:
                timer.cancel()
            if waiting.comes_back is not None:
                self._stay_away(waiting)
            self._rows -= 1
            self._bytes -= size

    async def many(
        self, items: Sequence[Item], sizes: Sequence[int], until: float | None = None
    ) -> list[Answer | OrdersError]:
        """Wait for the batches that take the items of one caller; return the answer of each, or why it has none.

        `sizes` and the errors are those of a call with a single item. A cheaper way than a task for each: they share
        one timer.
        """
        joined: list[_Waiting[Item, Answer] | Overloaded] = []
        for item, size in zip(items, sizes, strict=True):
            try:
                joined.append(self._join(item, size))
            except Overloaded as error:
                joined.append(error)
        waiting = [each for each in joined if isinstance(each, _Waiting)]
        timer = None
        try:
            if waiting:
                self._call_a_writer()
                if (until := until or self.patience_ends()) is not None:
                    timer = asyncio.get_running_loop().call_at(until, _settle_all, waiting, Unavailable())
                await asyncio.wait([each.answer for each in waiting])
            return [each if isinstance(each, Overloaded) else _outcome(each.answer) for each in joined]
        finally:
            if timer is not None:
                timer.cancel()
            for each in waiting:
                each.answer.cancel()  # if it has none, the caller is cancelled: no writer takes it any more
                self._stay_away(each)
                self._rows -= 1
                self._bytes -= each.size

    def _join(self, item: Item, size: int) -> _Waiting[Item, Answer]:
        """Have an item wait in the queue; raise Overloaded if too much is waiting."""
        limits = self.limits
        if self.stopping or self._rows >= limits.queue_rows or self._bytes + size > limits.queue_bytes:
            raise Overloaded
        waiting: _Waiting[Item, Answer] = _Waiting(item, size, asyncio.get_running_loop())
        self._queue.append(waiting)
        self._rows += 1
        self._bytes += size
        return waiting

    def _stay_away(self, waiting: _Waiting[Item, Answer]) -> None:
        """Have an item that was set aside not come back: its caller has its answer, or has gone."""
        if waiting.comes_back is not None:
            waiting.comes_back.cancel()
            self._aside.discard(waiting)
            self.locked.end(waiting)

    def _call_a_writer(self) -> None:
        """Wake a writer for an item that joined the queue, unless one will come by itself."""
        if self._gathering is not None:
            if len(self._queue) >= self._hoped_for and not self._gathering.done():
                self._gathering.set_result(None)
        elif self._running == self._slow or len(self._queue) >= self.limits.batch_rows:
            self._wake()

    def _set_aside(self, waiting: _Waiting[Item, Answer], busy: Busy) -> None:
        """Have an item, whose row another session has locked, come back to the queue after a pause."""
        if waiting.answer.done():
            return
        if self.stopping:
            _settle(waiting, Unavailable())
            return
        pause = self.locked.pause(waiting, busy)
        waiting.comes_back = asyncio.get_running_loop().call_later(pause, self._bring_back, waiting)
        self._aside.add(waiting)

    def _bring_back(self, waiting: _Waiting[Item, Answer]) -> None:
        self._aside.discard(waiting)
        waiting.since = asyncio.get_running_loop().time()
        self._queue.append(waiting)
        self._call_a_writer()

    def _give_up_those_aside(self) -> None:
        for waiting in self._aside:
            _settle(waiting, Unavailable())

    def _wake(self, *, all_of_them: bool = False) -> None:
        while self._idle:
            idle = self._idle.pop()
            if not idle.done():
                idle.set_result(None)
                if not all_of_them:
                    return

    def _take(self, max_rows: int) -> list[_Waiting[Item, Answer]]:
        """Take from the queue what fits one batch, without the items whose callers have gone."""
        batch: list[_Waiting[Item, Answer]] = []
        size = 0
        while self._queue and len(batch) < max_rows:
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
        """Run batch after batch on a connection of its own, until the batcher stops and nothing waits any more."""
        writer: _Writer[Item, Answer] = _Writer(self.limits.batch_rows)
        try:
            while not self.stopping or self._queue or writer.batch:
                if writer.conn is None and (self._queue or writer.batch or self.limits.idle_seconds is None):
                    await self._connect(writer)
                elif writer.conn is not None and self._has_batch(writer):
                    await self._run_batch(writer, writer.conn)
                elif not self.stopping:
                    await self._wait_for_items(writer)
        finally:
            self._alive -= 1
            self._abandon(writer.batch)
            await self._disconnect(writer)

    async def _wait_for_items(self, writer: _Writer[Item, Answer]) -> None:
        """Wait until an item comes; close the connection if none comes for `idle_seconds`."""
        idle = asyncio.get_running_loop().create_future()
        self._idle.append(idle)
        await asyncio.wait([idle], timeout=None if writer.conn is None else self.limits.idle_seconds)
        if not idle.done():
            self._idle.remove(idle)
            await self._disconnect(writer)

    async def _connect(self, writer: _Writer[Item, Answer]) -> None:
        """Try once to open the writer's connection; if that fails, pause and drop the callers that have gone."""
        try:
            writer.conn = await postgres.connect(self.url, f"orders-{self.name}", **self.session)
        except psycopg.Error as error:
            if (message := first_line(error)) != writer.last_logged:
                log.warning("%s: no connection: %s", self.name, message)
            writer.last_logged = message
            if self.stopping:  # no later try would come in time
                for waiting in (*writer.batch, *self._queue):
                    _settle(waiting, Unavailable())
            writer.batch = [waiting for waiting in writer.batch if not waiting.answer.done()]
            self._queue = deque(waiting for waiting in self._queue if not waiting.answer.done())
            await asyncio.sleep(next(writer.pauses))
            return
        writer.last_logged = ""
        self.connections += 1
        CONNECTIONS.labels(self.name).set(self.connections)

    async def _disconnect(self, writer: _Writer[Item, Answer]) -> None:
        if writer.conn is not None:
            self.connections -= 1
            CONNECTIONS.labels(self.name).set(self.connections)
            conn, writer.conn = writer.conn, None
            await postgres.close(conn)

    def _has_batch(self, writer: _Writer[Item, Answer]) -> bool:
        """Give the writer what it runs next: the rest of its last batch, else what waits, at most `max_rows` of it."""
        rest = [waiting for waiting in writer.batch if not waiting.answer.done() and waiting not in self._aside]
        batch = rest or self._take(writer.max_rows)
        if len(batch) > writer.max_rows:
            self._queue.extendleft(reversed(batch[writer.max_rows :]))
            del batch[writer.max_rows :]
        writer.batch = batch
        return bool(batch)

    async def _run_batch(self, writer: _Writer[Item, Answer], conn: AsyncConnection) -> None:
        """Run the writer's batch once; afterwards it is done with, or left to be run again."""
        loop = asyncio.get_running_loop()
        batch_size = len(writer.batch)
        self._batch_rows.observe(batch_size)
        self._queue_seconds.observe(loop.time() - writer.batch[0].since)
        started = loop.time()
        with self._in_flight():
            error_class = await self._run(conn, writer.batch)
        writer.max_rows = next_max_rows(error_class, batch_size, writer.max_rows, self.limits.batch_rows)
        if error_class is None:
            await self._gather(batch_size, writer.max_rows, loop.time() - started)
            writer.batch = []
            writer.pauses = backoff()
            return
        if error_class.needs_another_connection:
            await self._disconnect(writer)
        if self._queue:
            self._wake()
        await asyncio.sleep(next(writer.pauses))

    def _abandon(self, batch: Iterable[_Waiting[Item, Answer]]) -> None:
        """Answer the callers that a crash, which ends the process, leaves without a writer."""
        for waiting in batch:
            _settle(waiting, Unavailable())
        if not self._alive:
            self.stopping = True
            for waiting in self._queue:
                _settle(waiting, Unavailable())
            self._give_up_those_aside()

    @contextlib.contextmanager
    def _in_flight(self) -> Iterator[None]:
        """Wake another writer for what waits, if the block takes longer than SLOW_SECONDS."""
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

    async def _gather(self, batch_size: int, max_rows: int, elapsed_seconds: float) -> None:
        """Let the next batch grow after one of `batch_size` rows, if callers wait for it already."""
        self._running += 1
        # Twice around the loop: requests that arrived meanwhile, and are read only now, belong to the next batch.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        hoped_for = rows_to_wait_for(batch_size, len(self._queue), max_rows)
        if hoped_for and self._bytes < self.limits.batch_bytes and self._gathering is None and not self.stopping:
            self._hoped_for = hoped_for
            self._gathering = asyncio.get_running_loop().create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(gather_seconds(elapsed_seconds)):
                    await self._gathering
            self._gathering = None
        self._running -= 1

    async def _run(self, conn: AsyncConnection, batch: list[_Waiting[Item, Answer]]) -> ErrorClass | None:
        """Run a batch and answer its callers; return None if that is done, else why it has to run again."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            with postgres.deadline(conn, self.limits.statement_seconds):
                answers = await self.run(conn, [waiting.item for waiting in batch])
        except STATEMENT_ERRORS as error:
            error_class = classify(error, timed_out=loop.time() >= started + self.limits.statement_seconds)
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
            if isinstance(answer, Busy) and self.limits.retry_busy:
                self._set_aside(waiting, answer)
            else:
                _settle(waiting, answer)
        return None

    async def _run_one_by_one(
        self, conn: AsyncConnection, batch: Iterable[_Waiting[Item, Answer]]
    ) -> ErrorClass | None:
        """Find the rows that the database refuses, and write the others.

        Returns why the rest has to run again as a batch, or None if all are answered.
        """
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


def _outcome(answer: asyncio.Future[Any]) -> Any:
    """Return the answer that an item has, or the error that it has instead."""
    return answer.exception() or answer.result()


def _settle_all(waiting: Iterable[_Waiting[Item, Answer]], answer: OrdersError) -> None:
    for each in waiting:
        _settle(each, answer)


def _settle(waiting: _Waiting[Item, Answer], answer: Answer | OrdersError | Busy) -> None:
    if waiting.answer.done():  # the caller's patience is over
        return
    if isinstance(answer, OrdersError):
        waiting.answer.set_exception(answer)
    else:
        waiting.answer.set_result(answer)  # type: ignore[arg-type]  # a Busy that is not retried is an Answer
