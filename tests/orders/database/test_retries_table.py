"""A retry is found when it is due, also long after, and the look for it costs little."""

from typing import LiteralString

from psycopg import AsyncConnection

from orders.broker.topology import WORK_QUEUE
from orders.database import retries_table
from orders.database.postpone_orders import Postpone, postpone_orders
from orders.database.retries_table import Due
from orders.model.traceparent import continue_trace
from tests.orders.work_samples import claim, place, rows, work_message


async def test_retry_that_is_long_overdue_is_found(conn: AsyncConnection) -> None:
    """
    After an outage of everybody, the look through the table finds what the short one leaves out.
    """
    [placed] = await place(conn)
    [claimed] = await claim(conn, [placed])
    await postpone_orders(conn, [Postpone(claimed, work_message(placed), 0, placed.event.body, continue_trace(None))])
    await conn.execute("UPDATE retries SET due_at = now() - interval '3 hours'")

    assert await retries_table.send_due(conn, WORK_QUEUE, 10, within_seconds=60) == Due(0, [])
    assert await retries_table.count(conn, after_seconds=60, page=0, pages=100) == (1, 1, 1)
    assert await retries_table.send_overdue(conn, WORK_QUEUE, 10, after_seconds=60, page=1, pages=100) == Due(0, [])
    assert await retries_table.send_overdue(conn, WORK_QUEUE, 10, after_seconds=60, page=0, pages=100) == Due(1, [])


async def test_look_skips_what_is_gone(conn: AsyncConnection) -> None:
    """
    A look begins a minute ago in the index: rows that are gone, but that an old transaction keeps, cost it nothing.
    """
    await conn.execute("SET enable_seqscan = off")  # the table is too small here for the planner to mind

    plan = await rows(conn, "EXPLAIN " + retries_table.SEND_DUE, 60.0, 10, 1.0, WORK_QUEUE)

    [condition] = [str(line) for (line,) in plan if "Index Cond: ((due_at > " in str(line)]
    assert "due_at <= " in condition


async def test_retries_that_have_gone_cost_nothing(conn: AsyncConnection, database_url: str) -> None:
    """
    While an old snapshot is open, neither a look for what is due nor one at a slice of the table reads more for
    thousands of retries that have gone.
    """
    async with await AsyncConnection.connect(database_url) as holder, conn.transaction():
        await holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await holder.execute("SELECT count(*) FROM retries")
        nothing = await _blocks(conn)
    async with await AsyncConnection.connect(database_url) as holder:
        await holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await holder.execute("SELECT count(*) FROM retries")
        await conn.execute(
            """
            INSERT INTO retries (order_id, due_at, event_id, body, traceparent)
            SELECT gen_random_uuid(), now() - n * interval '1 s', gen_random_uuid(), repeat('x', 500)::bytea, ''
            FROM generate_series(100, 10100) AS n
            """
        )
        await conn.execute("DELETE FROM retries")
        async with conn.transaction():
            gone = await _blocks(conn)

    assert gone <= nothing + 40


async def _blocks(conn: AsyncConnection) -> int:
    """Return how many blocks of the table and its indexes a look for retries reads."""
    fetched: LiteralString = (
        "SELECT sum(pg_stat_get_xact_blocks_fetched(oid)) FROM pg_class WHERE relname LIKE 'retries%'"
    )
    [[before]] = await (await conn.execute(fetched)).fetchall()
    await conn.execute("SET LOCAL enable_seqscan = off")  # the table is too small here for the planner to mind
    await retries_table.send_due(conn, WORK_QUEUE, 10, within_seconds=30)
    await retries_table.count(conn, after_seconds=30, page=0, pages=20)
    await retries_table.send_overdue(conn, WORK_QUEUE, 10, after_seconds=30, page=0, pages=10)
    [[after]] = await (await conn.execute(fetched)).fetchall()
    return int(after - before)
