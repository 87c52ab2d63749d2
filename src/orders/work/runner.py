"""Run a handler once, and say in data what came of it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from enum import Enum
from typing import cast

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from orders.database import outbox_table, postgres
from orders.database.claim_orders import Claimed
from orders.database.errors import ErrorClass, classify, is_server_failure
from orders.database.finish_orders import Finished, finish_of, finish_orders
from orders.handlers import Handler, PlainHandler, Refuse, Retry, TransactionalHandler, wants_connection
from orders.model.error_text import first_line, message_of
from orders.runtime.timeouts import STATEMENT_SECONDS

LAST_WORDS_SECONDS = 0.2  # for a handler whose connection was severed to see it and to end by itself
STANDSTILL_SECONDS = 0.5  # a timer that is so late says that the process stood still, not that it was busy


class Job(msgspec.Struct, frozen=True):
    """A claimed order to run the handler for, and the trace that it belongs to."""

    claimed: Claimed
    traceparent: str


class Done(msgspec.Struct, frozen=True, tag=True):
    """The handler has done its work; the order is still to be finished."""


class Committed(msgspec.Struct, frozen=True, tag=True):
    """The handler has done its work, and the order is finished in the same transaction."""

    finished: Finished | None  # None: it was no longer ours to finish, and all is rolled back


class Again(msgspec.Struct, frozen=True, tag=True):
    """It failed, and may do better the next time."""

    reason: str
    after: float | None = None


class Never(msgspec.Struct, frozen=True, tag=True):
    """The handler refuses this order."""

    reason: str


class Weather(msgspec.Struct, frozen=True, tag=True):
    """The database went away under it: nobody's failure, and the outcome is unknown."""

    reason: str


class Died(msgspec.Struct, frozen=True, tag=True):
    """The process that ran the handler for this order alone died of it."""

    reason: str


Outcome = Done | Committed | Again | Never | Weather | Died
Run = Callable[[Job], Awaitable[Outcome]]


class Runner:
    """Runs one handler; a transactional one on connections that are kept for the next."""

    def __init__(self, handler: Handler, database_url: str, *, timeout: float) -> None:
        self.handler = handler
        self.database_url = database_url
        self.timeout = timeout
        self.wants_connection = wants_connection(handler)
        self._idle: list[AsyncConnection] = []
        self._busy: set[AsyncConnection] = set()

    async def __call__(self, job: Job) -> Outcome:
        """Run the handler for a claimed order."""
        try:
            if self.wants_connection:
                return await self._run_in_transaction(job)
            await self._run_plain(job)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return Again("something that the handler waited for was cancelled")
        except Exception as error:  # whatever a handler raises is its own failure
            return outcome_of(error, self.timeout)
        return Done()

    def sever(self) -> None:
        """Let go of every transaction in hand: each ends by itself, with nothing committed."""
        for conn in self._busy:
            postgres.sever(conn)

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            await postgres.close(self._idle.pop())

    async def _run_plain(self, job: Job) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as end:
            with time_limit(self.timeout, lambda: end.reschedule(loop.time())):
                await cast(PlainHandler, self.handler)(job.claimed.order)

    async def _run_in_transaction(self, job: Job) -> Outcome:
        try:
            conn = await self._connection()
        except psycopg.Error as error:
            return Weather(first_line(error))
        late = False

        def cut_off() -> None:
            nonlocal late
            late = True
            postgres.sever(conn)
            end.reschedule(asyncio.get_running_loop().time() + LAST_WORDS_SECONDS)

        self._busy.add(conn)
        try:
            async with asyncio.timeout(None) as end:
                with time_limit(self.timeout, cut_off):
                    finished = await self._transaction(conn, job)
        except Exception as error:
            match fault_of(error, late=late, broken=conn.broken):
                case Fault.LATE:
                    raise TimeoutError from None
                case Fault.WEATHER:
                    return Weather(first_line(error))
                case Fault.NO_PARTITION:
                    with contextlib.suppress(psycopg.Error), postgres.deadline(conn, STATEMENT_SECONDS):
                        await outbox_table.add_partitions(conn)  # if not now, then at the next run
                    return Weather("the outbox had no partition for the next id")
                case Fault.ITS_OWN:
                    raise
        finally:
            self._busy.discard(conn)
            if conn.closed or conn.info.transaction_status != TransactionStatus.IDLE:
                await postgres.close(conn)
            else:
                self._idle.append(conn)
        return Committed(finished)

    async def _transaction(self, conn: AsyncConnection, job: Job) -> Finished | None:
        async with conn.transaction():
            await cast(TransactionalHandler, self.handler)(job.claimed.order, conn)
            [finished] = await finish_orders(conn, [finish_of(job.claimed, job.traceparent)])
            if finished is None:
                raise psycopg.Rollback  # somebody else has claimed the order since: our rows are theirs to write
            return finished
        return None

    async def _connection(self) -> AsyncConnection:
        while self._idle:
            if not (conn := self._idle.pop()).broken:
                return conn
        # The handler's own statements and pauses may take as long as the handler may.
        limit = str(round(1000 * self.timeout) + 1000)
        return await postgres.connect(
            self.database_url,
            "orders-handler",
            idle_in_transaction_session_timeout=limit,
            statement_timeout=limit,
            lock_timeout=limit,
        )


@contextlib.contextmanager
def time_limit(seconds: float, cut_off: Callable[[], None]) -> Iterator[None]:
    """Call `cut_off` if the block takes longer.

    In a process that was stopped a handler finds its own timers due together with ours, so then it gets its time anew.
    Only once: one that holds the loop up itself would get it for ever.
    """
    loop = asyncio.get_running_loop()
    due = loop.time() + seconds
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        if loop.time() > due + STANDSTILL_SECONDS:
            timer = loop.call_later(seconds, cut_off)
        else:
            cut_off()

    timer = loop.call_at(due, look)
    try:
        yield
    finally:
        timer.cancel()


class Fault(Enum):
    """Whose fault the end of a handler's transaction is."""

    ITS_OWN = "the handler's own"
    LATE = "it took too long, and was cut off"
    WEATHER = "the server's: demoted, out of resources, shut down, or I/O"
    NO_PARTITION = "nobody's: the outbox has no partition for the next id"


def fault_of(error: Exception, *, late: bool, broken: bool) -> Fault:
    """Decide why a transaction ended, from its error and from what became of its connection."""
    if late:
        return Fault.LATE
    if broken or is_server_failure(error):  # broken: also where the handler made an error of its own out of it
        return Fault.WEATHER
    if classify(error) is ErrorClass.PARTITION_MISSING:
        return Fault.NO_PARTITION
    return Fault.ITS_OWN


def outcome_of(error: Exception, timeout: float) -> Again | Never:
    """Say what a handler's own failure means for its order."""
    match error:
        case Refuse():
            return Never(message_of(error))
        case Retry():
            return Again(message_of(error), error.after)
        case TimeoutError():
            return Again(f"the handler took longer than {timeout:g} s")
        case _:
            return Again(f"{type(error).__name__}: {first_line(error)}")
