"""A retry is found when it is due, also long after, and the look for it costs little."""

from psycopg import AsyncConnection

from orders.broker.topology import WORK_QUEUE
from orders.database import retries_table
from orders.database.postpone_orders import Postpone, postpone_orders
from orders.database.retries_table import Due
from orders.model.traceparent import continue_trace
from tests.orders.work_samples import claim, place, rows, work_message


async def test_retry_that_is_long_overdue_is_found(conn: AsyncConnection) -> None:
    """
    After an outage of everybody, the look from the beginning finds what the short one leaves out.
    """
    [placed] = await place(conn)
    [claimed] = await claim(conn, [placed])
    await postpone_orders(conn, [Postpone(claimed, work_message(placed), 0, placed.event.body, continue_trace(None))])
    await conn.execute("UPDATE retries SET due_at = now() - interval '3 hours'")

    assert await retries_table.send_due(conn, WORK_QUEUE, 10, within_seconds=60) == Due(0, [])
    assert await retries_table.send_due(conn, WORK_QUEUE, 10, within_seconds=1e6) == Due(1, [])


async def test_look_skips_what_is_gone(conn: AsyncConnection) -> None:
    """
    A look begins a minute ago in the index: rows that are gone, but that an old transaction keeps, cost it nothing.
    """
    await conn.execute("SET enable_seqscan = off")  # the table is too small here for the planner to mind

    plan = await rows(conn, "EXPLAIN " + retries_table.SEND_DUE, 60.0, 10, 1.0, WORK_QUEUE)

    [condition] = [str(line) for (line,) in plan if "Index Cond: ((due_at > " in str(line)]
    assert "due_at <= " in condition
