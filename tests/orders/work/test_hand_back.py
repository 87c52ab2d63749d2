"""A worker that stops hands its orders back, if the database lets it."""

from psycopg import AsyncConnection

from orders.model.ids import uuid7
from orders.work.hand_back import hand_back
from tests.orders.work_samples import WORKER, claim, place, rows


async def test_orders_are_handed_back(conn: AsyncConnection, database_url: str) -> None:
    """
    The orders that are still ours are released, and no others.
    """
    ours, theirs = await place(conn, 2)
    await claim(conn, [ours])
    await claim(conn, [theirs], WORKER + 1)

    assert await hand_back(database_url, WORKER, [ours.order.order_id, theirs.order.order_id]) == 1

    assert await rows(conn, "SELECT worker FROM orders ORDER BY worker") == [(0,), (WORKER + 1,)]


async def test_without_a_database() -> None:
    """
    A database that is away neither fails nor delays the stop.
    """
    assert await hand_back("postgresql://nobody@127.0.0.1:1/nowhere", WORKER, [uuid7()]) == 0
    assert await hand_back("no URL at all", WORKER, []) == 0
