"""Run a handler once and return its outcome as data."""

import asyncio
import contextlib
import threading
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
from orders.database.row_locks import Busy
from orders.handlers import (
    BlockingHandler,
    Handler,
    PlainHandler,
    Refuse,
    Retry,
    TransactionalHandler,
    is_blocking,
    wants_connection,
)
from orders.model.error_text import first_line, message_of
from orders.model.errors import OrdersError
from orders.model.order import Order
from orders.runtime.timeouts import STATEMENT_SECONDS
from orders.work.failure_log import FailureLog, kind_of

LAST_WORDS_SECONDS = 0.2  # for a handler to notice that its connection was severed, and to end by itself
LOCKED_SECONDS = 0.5  # for another session to unlock the order's row; then the transaction is rolled back
LOCKED_PAUSE_SECONDS = 0.05
STANDSTILL_SECONDS = 0.5  # a timer that is this late means that the process was stopped, not that it was busy


class Job(msgspec.Struct, frozen=True):
    """A claimed order to run the handler for. `traceparent` is the W3C trace context of its events."""

    claimed: Claimed
    traceparent: str


class Succeeded(msgspec.Struct, frozen=True, tag=True):
    """The handler returned; the end of the order is not written yet."""


class Committed(msgspec.Struct, frozen=True, tag=True):
    """The handler returned, and the end of the order was written in the handler's transaction."""

    finished: Finished | None  # None: another claim owns the order now, and the transaction was rolled back


class HandlerFailed(msgspec.Struct, frozen=True, tag=True):
    """The handler failed, and a later attempt may succeed. `after`: seconds until then, None for the default pause."""

    reason: str
    after: float | None = None
    error: str | None = None  # the class of the handler's error
    public: str | None = None  # what clients read in its place: the reason may hold what is not theirs to know


class HandlerRefused(msgspec.Struct, frozen=True, tag=True):
    """The handler raised `Refuse`: the order fails for good."""

    reason: str


class TransientFailure(msgspec.Struct, frozen=True, tag=True):
    """The database connection was lost or its server refused to work. The outcome is unknown; no failure is counted."""

    reason: str


class ChildDied(msgspec.Struct, frozen=True, tag=True):
    """The child process that ran the handler for this order alone died."""

    reason: str


class OrderLocked(OrdersError):
    """Another session has locked the order's row."""


RunOutcome = Succeeded | Committed | HandlerFailed | HandlerRefused | TransientFailure | ChildDied
Run = Callable[[Job], Awaitable[RunOutcome]]


class Runner:
    """Runs one handler. A transactional handler gets a connection, which is kept for the next run.

    A blocking handler gets a thread for each run. Nothing can cut a thread off: after its timeout the run counts as
    failed, and the thread goes on beside the next attempt.
    """

    def __init__(self, handler: Handler, database_url: str, *, timeout: float) -> None:
        self.handler = handler
        self.database_url = database_url
        self.timeout = timeout
        self.wants_connection = wants_connection(handler)
        self._failures = FailureLog()
        self.is_blocking = is_blocking(handler)
        self._idle: list[AsyncConnection] = []
        self._busy: set[AsyncConnection] = set()

    async def __call__(self, job: Job) -> RunOutcome:
        """Run the handler for a claimed order and return its outcome; a handler's errors never propagate."""
        try:
            if self.wants_connection:
                return await self._run_in_transaction(job)
            await self._run_plain(job)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return HandlerFailed("something that the handler waited for was cancelled", error="CancelledError")
        except Exception as error:  # any error of a handler is a failure of the handler
            if not isinstance(error, Refuse | Retry):
                self._failures.add(job.claimed.order.order_id, error)
            return outcome_of(error, self.timeout)
        return Succeeded()

    def sever(self) -> None:
        """Cut the connection of every running transaction: each ends with an error and commits nothing."""
        for conn in self._busy:
            postgres.sever(conn)

    async def close(self) -> None:
        """Close the idle connections, and log what was counted of the handler's failures."""
        self._failures.close()
        while self._idle:
            await postgres.close(self._idle.pop())

    async def _run_plain(self, job: Job) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as end:
            with time_limit(self.timeout, lambda: end.reschedule(loop.time())):
                if self.is_blocking:
                    await _in_a_thread(cast(BlockingHandler, self.handler), job.claimed.order)
                else:
                    await cast(PlainHandler, self.handler)(job.claimed.order)

    async def _run_in_transaction(self, job: Job) -> RunOutcome:
        try:
            conn = await self._connection()
        except psycopg.Error as error:
            return TransientFailure(first_line(error))
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
        except OrderLocked as error:
            return TransientFailure(str(error))
        except Exception as error:
            match cause_of(error, late=late, broken=conn.broken):
                case FailureCause.TIMEOUT:
                    raise TimeoutError from error
                case FailureCause.DATABASE:
                    return TransientFailure(first_line(error))
                case FailureCause.NO_PARTITION:
                    with contextlib.suppress(psycopg.Error), postgres.deadline(conn, STATEMENT_SECONDS):
                        await outbox_table.add_partitions(conn)  # if not now, then at the next run
                    return TransientFailure("the outbox had no partition for the next id")
                case FailureCause.HANDLER:
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
            end = finish_of(job.claimed, job.traceparent)
            loop = asyncio.get_running_loop()
            give_up_at = loop.time() + LOCKED_SECONDS
            while isinstance(finished := (await finish_orders(conn, [end]))[0], Busy):
                if loop.time() > give_up_at:
                    raise OrderLocked
                await asyncio.sleep(LOCKED_PAUSE_SECONDS)
            if finished is None:
                raise psycopg.Rollback  # another claim owns the order now and writes these rows
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


async def _in_a_thread(handler: BlockingHandler, order: Order) -> None:
    """Run a handler in a thread that ends with the process: one that hangs does not keep a worker from stopping."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def end(error: BaseException | None) -> None:
        if ended.done():  # its time is over
            return
        if error is None:
            ended.set_result(None)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            ended.set_exception(error)
        else:
            ended.set_exception(RuntimeError(type(error).__name__))

    def run() -> None:
        error: BaseException | None = None
        try:
            handler(order)
        except BaseException as raised:  # also what would end a thread without a word
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end, error)

    threading.Thread(target=run, name=f"handler of order {order.order_id}", daemon=True).start()
    await ended


@contextlib.contextmanager
def time_limit(seconds: float, cut_off: Callable[[], None]) -> Iterator[None]:
    """Call `cut_off` once, if the block takes longer than `seconds`.

    After SIGSTOP and SIGCONT the handler's own timers are due together with ours. The handler then gets its full time
    once more; only once, because a handler that blocks the event loop looks the same.
    """
    loop = asyncio.get_running_loop()
    due = loop.time() + seconds
    timer: asyncio.TimerHandle

    def check() -> None:
        nonlocal timer
        if loop.time() > due + STANDSTILL_SECONDS:
            timer = loop.call_later(seconds, cut_off)
        else:
            cut_off()

    timer = loop.call_at(due, check)
    try:
        yield
    finally:
        timer.cancel()


class FailureCause(Enum):
    """Why a handler's transaction ended with an error."""

    HANDLER = "the handler itself"
    TIMEOUT = "it took longer than WORK_TIMEOUT, and was cut off"
    DATABASE = "the database: connection lost, server demoted, out of resources or shut down, or an I/O error"
    NO_PARTITION = "the outbox has no partition for the next id"


def cause_of(error: Exception, *, late: bool, broken: bool) -> FailureCause:
    """Return why a transaction ended. `late`: we cut it off; `broken`: its connection was lost."""
    if late:
        return FailureCause.TIMEOUT
    if broken or is_server_failure(error):  # broken: also where the handler made an error of its own out of it
        return FailureCause.DATABASE
    if classify(error) is ErrorClass.PARTITION_MISSING:
        return FailureCause.NO_PARTITION
    return FailureCause.HANDLER


def outcome_of(error: Exception, timeout: float) -> HandlerFailed | HandlerRefused:
    """Return the outcome for an error that a handler raised. `timeout`: WORK_TIMEOUT in seconds, for the message."""
    match error:
        case Refuse():
            return HandlerRefused(message_of(error))
        case Retry():
            return HandlerFailed(message_of(error), error.after, "Retry")
        case TimeoutError():
            return HandlerFailed(f"the handler took longer than {timeout:g} s", error="TimeoutError")
        case _:
            name = type(error).__name__
            public = f"{name}, reference {kind_of(error).reference}"
            return HandlerFailed(f"{name}: {first_line(error)}", error=name, public=public)
