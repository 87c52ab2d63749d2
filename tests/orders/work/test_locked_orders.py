"""One order that a stranger locks waits alone: claims, ends, retries and dead letters of the others go on."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import LiteralString

import pytest
from psycopg import AsyncConnection

from orders.database.claim_orders import Claimed, hand_back
from orders.database.dead_letters_table import DeadLetter, PoisonMark, store
from orders.database.finish_orders import Finished, finish_of
from orders.database.notify import RelayNotifier
from orders.database.place_orders import Placement
from orders.database.postpone_orders import Postpone
from orders.database.redrive_orders import Redrive, redrive_orders, still_failed
from orders.database.row_locks import Busy
from orders.database.worker_lock import WorkerLock
from orders.model.order import Order
from orders.model.traceparent import continue_trace
from orders.work.batches import WorkBatches
from orders.work.due_retries import DueRetries
from orders.work.runner import Committed, Job, Runner, Succeeded, TransientFailure
from tests.eventually import eventually
from tests.orders.row_locks import locked
from tests.orders.work.test_delivery import publish, working
from tests.orders.work_samples import STATUSES, WORKER, claim, fail, place, rows, work_message

MANY = 40
# A handler's transaction whose last statement was an end of its order, and not the handler's own.
BEHIND_THE_EFFECT: LiteralString = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'orders-handler' AND state = 'idle in transaction'
    AND query !~ '^(BEGIN|INSERT INTO effects)'
"""
SOON = 15.0  # while the rows stay locked; a wait for a fact, not a bound


@asynccontextmanager
async def batches_of(database_url: str) -> AsyncIterator[WorkBatches]:
    async with (
        RelayNotifier(database_url) as notifier,
        WorkerLock(database_url) as worker_lock,
        WorkBatches(database_url, worker_lock, notifier) as batches,
    ):
        await eventually(batches.are_connected)
        await eventually(worker_lock.held.is_set)
        yield batches


async def claim_all(batches: WorkBatches, placed: Sequence[Placement]) -> list[Claimed]:
    claims = await asyncio.gather(*(batches.claim(work_message(each)) for each in placed))
    return [each for each in claims if isinstance(each, Claimed)]


async def test_others_are_claimed_while_one_is_locked(conn: AsyncConnection, database_url: str) -> None:
    """
    The batch of a locked order is claimed without it; it is busy until it is free, and claimed then.
    """
    guilty, *others = placed = await place(conn, MANY)
    async with batches_of(database_url) as batches:
        async with locked(database_url, [guilty]):
            async with asyncio.timeout(SOON):
                claims = await asyncio.gather(*(batches.claim(work_message(each)) for each in placed))
            assert claims[0] == Busy(guilty.order.order_id)
            assert all(isinstance(each, Claimed) for each in claims[1:])
            assert sorted(await rows(conn, STATUSES)) == [("placed", 1), ("processing", len(others))]

        assert len(await claim_all(batches, [guilty])) == 1


async def test_locked_order_is_worked_when_it_is_free(conn: AsyncConnection, database_url: str, topology: str) -> None:
    """
    Its delivery stays in hand, and is told of; once the stranger is gone, the handler runs, once.
    """
    ran: list[Job] = []

    async def run(job: Job) -> Succeeded:
        ran.append(job)
        return Succeeded()

    guilty, *others = placed = await place(conn, 5)
    async with working(database_url, topology, run) as work:
        async with locked(database_url, [guilty]):
            for each in placed:
                await publish(topology, each.event.body)
            await eventually(lambda: work.counters.done == len(others))
            await eventually(lambda: work.batches.locked() == 1)
        await eventually(lambda: work.counters.done == len(placed))
        assert work.batches.locked() == 0
    assert len(ran) == len(placed)


async def test_others_finish_while_one_is_locked(conn: AsyncConnection, database_url: str) -> None:
    """
    The end of a locked order is set aside; the others end, and it follows when it is free. Each end is told once.
    """
    placed = await place(conn, MANY)
    async with batches_of(database_url) as batches:
        finishes = [finish_of(each, continue_trace(None)) for each in await claim_all(batches, placed)]
        async with locked(database_url, placed[:1]):
            guilty, *others = [asyncio.create_task(batches.finish(each)) for each in finishes]
            async with asyncio.timeout(SOON):
                assert all(isinstance(each, Finished) for each in await asyncio.gather(*others))
            assert sorted(await rows(conn, STATUSES)) == [("done", MANY - 1), ("processing", 1)]
            assert not guilty.done()
            assert batches.locked() == 1
        assert isinstance(await guilty, Finished)
    assert await rows(conn, "SELECT count(*) FROM outbox WHERE routing_key = 'order.done'") == [(MANY,)]


async def test_late_end_of_a_locked_order(conn: AsyncConnection, database_url: str) -> None:
    """
    An order that another claim owns is not busy, though it is locked: its late end has nothing to wait for.
    """
    placed = await place(conn, 2)
    async with batches_of(database_url) as batches:
        late = await claim_all(batches, placed)
        await claim_all(batches, placed)
        async with locked(database_url, placed[:1]), asyncio.timeout(SOON):
            ends = await asyncio.gather(*(batches.finish(finish_of(each, continue_trace(None))) for each in late))
    assert ends == [None, None]


async def test_others_are_postponed_while_one_is_locked(conn: AsyncConnection, database_url: str) -> None:
    """
    The failure of a locked order is counted when it is free, once.
    """
    placed = await place(conn, 5)
    async with batches_of(database_url) as batches:
        postpones = [
            Postpone(claimed, work_message(each), 60, each.event.body, continue_trace(None))
            for claimed, each in zip(await claim_all(batches, placed), placed, strict=True)
        ]
        async with locked(database_url, placed[:1]):
            guilty, *others = [asyncio.create_task(batches.postpone(each)) for each in postpones]
            async with asyncio.timeout(SOON):
                await asyncio.gather(*others)
            assert await rows(conn, "SELECT count(*) FROM retries") == [(4,)]
            assert not guilty.done()
        await guilty
    assert await rows(conn, "SELECT failures, worker, count(*) FROM orders GROUP BY 1, 2") == [(1, 0, 5)]
    assert await rows(conn, "SELECT count(*) FROM retries") == [(5,)]


async def test_due_retries_go_on_while_one_is_locked(conn: AsyncConnection, database_url: str) -> None:
    """
    Retries that are due are sent without the locked ones, even if those fill a whole batch, and those follow later.
    """
    placed = await place(conn, 230)
    claims = await claim(conn, placed)
    for late, batch in ((2.0, placed[:210]), (1.0, placed[210:])):
        ids = [each.order.order_id for each in batch]
        await conn.execute(
            "INSERT INTO retries (order_id, due_at, event_id, body, traceparent) "
            "SELECT order_id, clock_timestamp() - make_interval(secs => %s), event_id, '', '' FROM orders "
            "WHERE order_id = ANY(%s)",
            [late, ids],
        )
    assert len(claims) == 230

    async def sent() -> int:
        [(count,)] = await rows(conn, "SELECT count(*) FROM outbox WHERE exchange = ''")
        assert isinstance(count, int)
        return count

    async with AsyncExitStack() as stack:
        # First the locks: on a busy machine the retries would be sent before.
        async with locked(database_url, placed[:210]):
            retries = await stack.enter_async_context(DueRetries(database_url, lambda: None))

            async def others_are_sent() -> bool:
                return await sent() == 20

            await eventually(others_are_sent, within=SOON)
            await eventually(lambda: len(retries.locked) == 210)

        async def all_are_sent() -> bool:
            return await sent() == 230

        await eventually(all_are_sent)
    assert await rows(conn, "SELECT count(*) FROM retries") == [(0,)]


@pytest.mark.parametrize("which", ["order", "letter"])
async def test_dead_letters_are_stored_while_one_is_locked(
    conn: AsyncConnection, database_url: str, which: str
) -> None:
    """
    A dead letter whose order, or whose own row, is locked comes after the others; its order is not taken for unknown.
    """
    placed = await place(conn, 5)
    letters = [DeadLetter(each.event.body, len(each.event.body)) for each in placed]
    await store(conn, [PoisonMark(each.event.event_id, "it died alone") for each in placed])
    if which == "letter":
        await store(conn, letters[:1])
    async with batches_of(database_url) as batches:
        async with locked(database_url, placed[:1] if which == "order" else []) as stranger:
            await stranger.execute("SELECT FROM dead_letters FOR UPDATE")
            guilty, *others = [asyncio.create_task(batches.store(each)) for each in letters]
            async with asyncio.timeout(SOON):
                await asyncio.gather(*others)
            assert not guilty.done()
            assert batches.locked() == 1
        await guilty
    assert await rows(conn, STATUSES) == [("failed", 5)]
    assert await rows(conn, "SELECT kind, count(*), sum(arrivals) FROM dead_letters GROUP BY 1") == [
        ("deadly", 5, 5 if which == "order" else 6)
    ]


async def test_redrive_leaves_out_what_is_locked(conn: AsyncConnection, database_url: str) -> None:
    """
    A failed order that is locked stays failed, and can be told from one that was redriven; the others are redriven.
    """
    placed = await place(conn, 3)
    await fail(conn, await claim(conn, placed))
    async with locked(database_url, placed[:1]), asyncio.timeout(SOON):
        assert sorted(await redrive_orders(conn, Redrive("test"), [1, 2, 3])) == [2, 3]
        assert await still_failed(conn, [1, 2, 3]) == [1]
    assert await redrive_orders(conn, Redrive("test"), [1, 2, 3]) == [1]


async def test_hand_back_passes_over_a_locked_order(conn: AsyncConnection, database_url: str) -> None:
    """
    A worker that stops hands back all orders but the locked one.
    """
    placed = await place(conn, 3)
    await claim(conn, placed)
    async with locked(database_url, placed[:1]), asyncio.timeout(SOON):
        assert await hand_back(conn, WORKER, [each.order.order_id for each in placed]) == 2


@pytest.mark.parametrize("is_short", [True, False])
async def test_transaction_of_a_locked_order(
    conn: AsyncConnection, database_url: str, is_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A handler's own transaction waits for its order's row a moment, then it is rolled back, and no failure is counted.
    """

    async def book(order: Order, own: AsyncConnection) -> None:
        await own.execute("INSERT INTO effects VALUES (%s)", [order.order_id])

    async def has_met_the_lock() -> bool:
        return await rows(conn, BEHIND_THE_EFFECT) == [(1,)]

    await conn.execute("CREATE TABLE effects (order_id uuid NOT NULL)")
    placed = await place(conn)
    [claimed] = await claim(conn, placed)
    runner = Runner(book, database_url, timeout=10)
    if is_short:
        monkeypatch.setattr("orders.work.runner.LOCKED_SECONDS", SOON)
    async with locked(database_url, placed) as stranger:
        running = asyncio.create_task(runner(Job(claimed, continue_trace(None))))
        if is_short:
            await eventually(has_met_the_lock)
            await stranger.rollback()
        async with asyncio.timeout(SOON):
            outcome = await running
    await runner.close()

    assert isinstance(outcome, Committed if is_short else TransientFailure)
    assert await rows(conn, "SELECT count(*) FROM effects") == [(int(is_short),)]
