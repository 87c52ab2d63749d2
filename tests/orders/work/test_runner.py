"""What comes of one run of a handler, told in data."""

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.errors import lookup

from orders.handlers import Handler, Refuse, Retry
from orders.model.order import Order
from orders.model.traceparent import continue_trace
from orders.work.runner import (
    Committed,
    FailureCause,
    HandlerFailed,
    HandlerRefused,
    Job,
    Runner,
    RunOutcome,
    Succeeded,
    TransientFailure,
    cause_of,
    outcome_of,
)
from tests.eventually import eventually
from tests.orders.work_handlers import obey, obey_in_transaction
from tests.orders.work_samples import STATUSES, claim, place, rows

EFFECTS = "SELECT count(*) FROM effects"


@pytest.fixture
async def effects(conn: AsyncConnection) -> None:
    """The table that the handlers write to."""
    await conn.execute("CREATE TABLE effects (order_id uuid NOT NULL)")


@asynccontextmanager
async def running(handler: Handler, database_url: str) -> AsyncIterator[Runner]:
    runner = Runner(handler, database_url, timeout=0.3)
    yield runner
    await runner.close()


async def run(conn: AsyncConnection, database_url: str, handler: Handler, reference: str) -> RunOutcome:
    """Run a handler once, on an order of its own."""
    [claimed] = await claim(conn, await place(conn, reference=reference))
    async with running(handler, database_url) as runner:
        return without_digits(await runner(Job(claimed, continue_trace(None))))


def unforeseen(name: str, text: str) -> HandlerFailed:
    """The outcome of an error that is neither Refuse nor Retry; the digits of the reference are cut off."""
    return HandlerFailed(f"{name}: {text}", error=name, public=f"{name}, reference ")


def without_digits(outcome: RunOutcome) -> RunOutcome:
    if isinstance(outcome, HandlerFailed) and outcome.public is not None:
        public, digits = outcome.public[:-8], outcome.public[-8:]
        assert re.fullmatch("[0-9a-f]{8}", digits)
        return msgspec.structs.replace(outcome, public=public)
    return outcome


@pytest.mark.parametrize(
    ("reference", "outcome"),
    [
        ("", Succeeded()),
        ("refuse", HandlerRefused("no stock")),
        ("retry", HandlerFailed("busy", 7, "Retry")),
        ("raise", unforeseen("KeyError", "'a bug\\nand its second line'")),
        ("hang", HandlerFailed("the handler took longer than 0.3 s", error="TimeoutError")),
        (
            "retry tomorrow",
            unforeseen("TypeError", "Retry's `after` is a number of seconds, not a timedelta"),
        ),
        ("be cancelled", HandlerFailed("something that the handler waited for was cancelled", error="CancelledError")),
    ],
)
async def test_plain_handler(conn: AsyncConnection, database_url: str, reference: str, outcome: RunOutcome) -> None:
    """
    A handler that returns is done, one that refuses never comes again, and everything else is tried again.
    """
    assert await run(conn, database_url, obey, reference) == outcome


async def test_transaction_holds_effect_and_end(conn: AsyncConnection, database_url: str, effects: None) -> None:
    """
    What the handler wrote and the order's end are committed together.
    """
    outcome = await run(conn, database_url, obey_in_transaction, "")

    assert isinstance(outcome, Committed)
    assert outcome.finished is not None
    assert (await rows(conn, EFFECTS), await rows(conn, STATUSES)) == ([(1,)], [("done", 1)])


@pytest.mark.parametrize(
    ("reference", "outcome"),
    [
        ("refuse", HandlerRefused("no stock")),
        ("retry", HandlerFailed("busy", 7, "Retry")),
        ("hang", HandlerFailed("the handler took longer than 0.3 s", error="TimeoutError")),
        ("hang in a query", HandlerFailed("the handler took longer than 0.3 s", error="TimeoutError")),
        ("be cancelled", HandlerFailed("something that the handler waited for was cancelled", error="CancelledError")),
        ("wrong sql", unforeseen("UndefinedTable", 'relation "nowhere" does not exist')),
    ],
)
async def test_failure_rolls_back(
    conn: AsyncConnection, database_url: str, effects: None, reference: str, outcome: RunOutcome
) -> None:
    """
    Whatever a handler wrote before it failed is gone, also when it hangs in a query of its own.
    """
    assert await run(conn, database_url, obey_in_transaction, reference) == outcome
    assert (await rows(conn, EFFECTS), await rows(conn, STATUSES)) == ([(0,)], [("processing", 1)])


@pytest.mark.parametrize(
    ("handler", "outcome"),
    # A stop that outlasts the handler's session ends that.
    [(obey, Succeeded), (obey_in_transaction, Committed | TransientFailure)],
    ids=["plain", "transaction"],
)
async def test_process_was_stopped(
    conn: AsyncConnection, database_url: str, effects: None, handler: Handler, outcome: Any
) -> None:
    """
    When a process goes on that was stopped past a handler's time, this is not the handler's failure: it ends its work.
    """
    assert isinstance(await run(conn, database_url, handler, "stand still"), outcome)


async def test_time_is_given_anew_once(conn: AsyncConnection, database_url: str) -> None:
    """
    A handler that hangs is cut off, whatever the process did in between.
    """
    outcome = await run(conn, database_url, obey, "stand still and hang")

    assert outcome == HandlerFailed("the handler took longer than 0.3 s", error="TimeoutError")


async def test_who_is_told_to_end_ends(conn: AsyncConnection, database_url: str) -> None:
    """
    A cancellation that is meant for the run itself is no failure of its handler.
    """
    started = asyncio.Event()

    async def hang(_order: Order) -> None:
        started.set()
        await asyncio.sleep(3600)

    running = asyncio.create_task(run(conn, database_url, hang, ""))
    await started.wait()
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running


async def test_swallowed_error_commits_nothing(conn: AsyncConnection, database_url: str, effects: None) -> None:
    """
    A handler that goes on after an error of its transaction has failed, whatever it returns.
    """
    assert isinstance(await run(conn, database_url, obey_in_transaction, "swallow"), HandlerFailed)
    assert (await rows(conn, EFFECTS), await rows(conn, STATUSES)) == ([(0,)], [("processing", 1)])


@pytest.mark.parametrize("reference", ["lose the database", "wrap the loss"])
async def test_lost_database_is_a_transient_failure(
    conn: AsyncConnection, database_url: str, effects: None, reference: str
) -> None:
    """
    When the database goes away under a handler it is not the handler's failure, whatever it makes of the error.
    """
    assert isinstance(await run(conn, database_url, obey_in_transaction, reference), TransientFailure)
    assert await rows(conn, EFFECTS) == [(0,)]


async def test_no_database_is_a_transient_failure(conn: AsyncConnection, effects: None) -> None:
    """
    Without a connection the handler is not even started.
    """
    assert isinstance(
        await run(conn, "postgresql://nobody@127.0.0.1:1/nowhere", obey_in_transaction, ""), TransientFailure
    )


async def test_overtaken_handler_writes_nothing(conn: AsyncConnection, database_url: str, effects: None) -> None:
    """
    If somebody else has claimed the order meanwhile, the effect is rolled back: it is theirs to have.
    """
    assert await run(conn, database_url, obey_in_transaction, "be overtaken") == Committed(None)
    assert (await rows(conn, EFFECTS), await rows(conn, STATUSES)) == ([(0,)], [("processing", 1)])


@pytest.mark.parametrize(
    ("error", "late", "broken", "fault"),
    [
        (KeyError("a bug"), False, False, FailureCause.HANDLER),
        (KeyError("made of a lost connection"), False, True, FailureCause.DATABASE),
        (TimeoutError(), True, False, FailureCause.TIMEOUT),
        # A cut at the deadline breaks the connection, too.
        (psycopg.OperationalError("the connection is lost"), True, True, FailureCause.TIMEOUT),
        (psycopg.OperationalError("the connection is lost"), False, False, FailureCause.HANDLER),
        (lookup("08006")("connection_failure"), False, False, FailureCause.DATABASE),
        (lookup("25006")("read_only_sql_transaction"), False, False, FailureCause.DATABASE),
        (lookup("25P02")("in_failed_sql_transaction"), False, False, FailureCause.HANDLER),
        (lookup("53100")("disk_full"), False, False, FailureCause.DATABASE),
        (lookup("57P01")("admin_shutdown"), False, False, FailureCause.DATABASE),
        (lookup("57014")("query_canceled"), False, False, FailureCause.HANDLER),
        (lookup("58030")("io_error"), False, False, FailureCause.DATABASE),
        (lookup("23514")("check_violation of no constraint"), False, False, FailureCause.NO_PARTITION),
        (lookup("23505")("unique_violation"), False, False, FailureCause.HANDLER),
        (lookup("40001")("serialization_failure"), False, False, FailureCause.HANDLER),
        (lookup("42P01")("undefined_table"), False, False, FailureCause.HANDLER),
    ],
)
def test_whose_fault(error: Exception, late: bool, broken: bool, fault: FailureCause) -> None:
    """
    What ended a transaction is the server's trouble, nobody's, or the handler's own.
    """
    assert cause_of(error, late=late, broken=broken) is fault


class Speechless(Exception):
    """Its own message fails."""

    def __str__(self) -> str:
        raise KeyError("words")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Refuse("no stock"), HandlerRefused("no stock")),
        (Retry("busy"), HandlerFailed("busy", error="Retry")),
        (Retry("busy", after=7), HandlerFailed("busy", 7, "Retry")),
        (TimeoutError(), HandlerFailed("the handler took longer than 0.5 s", error="TimeoutError")),
        (ValueError("one\ntwo"), unforeseen("ValueError", "one")),
        (ValueError(), unforeseen("ValueError", "ValueError")),
        (ConnectionResetError("gone"), unforeseen("ConnectionResetError", "gone")),
        (Refuse("no \ud800 stock"), HandlerRefused("no ? stock")),  # which no UTF-8 can say
        (Speechless(), unforeseen("Speechless", "Speechless")),
    ],
)
def test_a_handlers_own_failure(error: Exception, outcome: RunOutcome) -> None:
    """
    A refusal is final, and everything else may be tried again, with its reason in one line.
    """
    assert without_digits(outcome_of(error, 0.5)) == outcome


async def test_the_outbox_has_no_partition(conn: AsyncConnection, database_url: str, effects: None) -> None:
    """
    The partition that is missing for the order's event is made, and no failure is counted: a next run gets through.
    """
    [claimed] = await claim(conn, await place(conn))
    await conn.execute("SELECT setval('outbox_id_seq', 20000000)")
    async with running(obey_in_transaction, database_url) as runner:
        job = Job(claimed, continue_trace(None))

        async def gets_through() -> bool:
            return isinstance(await runner(job), Committed)

        assert isinstance(await runner(job), TransientFailure)
        await eventually(gets_through)  # where the server was too slow to make it at once, at a later one
    assert (await rows(conn, EFFECTS), await rows(conn, STATUSES)) == ([(1,)], [("done", 1)])


async def test_a_connection_that_was_lost_while_idle(conn: AsyncConnection, database_url: str, effects: None) -> None:
    """
    A connection that is kept for the next run, and lost meanwhile, is replaced; a good one is used again.
    """
    backends = (
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'orders-handler' AND datname = current_database()"
    )
    first, second, third = await claim(conn, await place(conn, 3))
    async with running(obey_in_transaction, database_url) as runner:
        assert isinstance(await runner(Job(first, continue_trace(None))), Committed)
        [pid] = await rows(conn, backends)
        assert isinstance(await runner(Job(second, continue_trace(None))), Committed)
        assert await rows(conn, backends) == [pid]
        await conn.execute("SELECT pg_terminate_backend(%s)", pid)
        lost = await runner(Job(third, continue_trace(None)))
        assert isinstance(lost, TransientFailure), "nobody knew that it was lost"
        assert isinstance(await runner(Job(third, continue_trace(None))), Committed)
        assert await rows(conn, backends) != [pid]


@pytest.mark.parametrize(("reference", "line"), [("raise", 'raise KeyError("a bug'), ("hang", "sleep(3600)")])
async def test_a_failure_leaves_its_traceback(
    conn: AsyncConnection, database_url: str, caplog: pytest.LogCaptureFixture, reference: str, line: str
) -> None:
    """
    The log has the line of the handler that raised, or at which its time ended, and the order.
    """
    [claimed] = await claim(conn, await place(conn, reference=reference))
    async with running(obey, database_url) as runner:
        await runner(Job(claimed, continue_trace(None)))

    assert line in caplog.text
    assert str(claimed.order.order_id) in caplog.text


@pytest.mark.parametrize("reference", ["refuse", "retry"])
async def test_an_answer_of_a_handler_is_no_failure_of_its_code(
    conn: AsyncConnection, database_url: str, caplog: pytest.LogCaptureFixture, reference: str
) -> None:
    """
    Refuse and Retry are the handler's own words: they leave no traceback.
    """
    await run(conn, database_url, obey, reference)

    assert "Traceback" not in caplog.text


def work_in_a_thread(order: Order) -> None:
    """Do as the order's reference says, blocking."""
    match order.reference:
        case "refuse":
            raise Refuse("no stock")
        case "exit":
            sys.exit(7)
        case "hang":
            time.sleep(1)
        case "stop":
            raise StopIteration


@pytest.mark.parametrize(
    ("reference", "outcome"),
    [
        (None, Succeeded()),
        ("refuse", HandlerRefused("no stock")),
        ("exit", unforeseen("RuntimeError", "SystemExit")),
        ("stop", unforeseen("RuntimeError", "StopIteration")),
        ("hang", HandlerFailed("the handler took longer than 0.3 s", error="TimeoutError")),
    ],
)
async def test_plain_function(
    conn: AsyncConnection, database_url: str, reference: str | None, outcome: RunOutcome
) -> None:
    """
    A handler that is not async runs in a thread: its loop turns meanwhile, and each way to end has its outcome.
    """
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick(), name="tick")
    assert await run(conn, database_url, work_in_a_thread, reference or "") == outcome
    ticking.cancel()
    assert reference != "hang" or ticks > 5
