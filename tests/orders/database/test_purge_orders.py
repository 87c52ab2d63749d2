from datetime import timedelta

from psycopg import AsyncConnection

from orders.database.purge_orders import BATCH_ROWS, purge_orders
from tests.orders.conftest import NEW, Api


async def count(conn: AsyncConnection, table: str) -> int:
    cursor = await conn.execute(f"SELECT count(*) FROM {table}")  # noqa: S608  # the tests' own words
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def aged(api: Api, conn: AsyncConnection, *, cancelled: bool) -> str:
    """An order placed, and perhaps ended, 100 days ago."""
    answer = await api.client.post(
        "/orders", json={**NEW, "reference": "r"}, headers={"Idempotency-Key": str(cancelled)}
    )
    placed = answer.json()["order_id"]
    if cancelled:
        await api.client.post(f"/orders/{placed}/cancel")
    # Its id is its age: 100 days are 8,640,000,000 ms, shifted up to where a UUIDv7 has them.
    old = f"00{placed[2:]}"
    await conn.execute(
        "UPDATE orders SET order_id = %s, finished_at = finished_at - interval '100 days' WHERE order_id = %s",
        [old, placed],
    )
    await conn.execute("UPDATE idempotency_keys SET created_at = created_at - interval '100 days'")
    return old


async def purge(conn: AsyncConnection, *, anonymise: bool = False) -> list[int]:
    return [rows async for rows in purge_orders(conn, timedelta(days=90), anonymise=anonymise)]


async def test_purge(api: Api, conn: AsyncConnection) -> None:
    """
    Orders that ended long ago are erased with the keys of their time; open ones and young ones stay.
    """
    gone, still_open = await aged(api, conn, cancelled=True), await aged(api, conn, cancelled=False)
    young = (await api.place())["order_id"]
    await api.client.post(f"/orders/{young}/cancel")

    assert await purge(conn) == [1]
    assert [(await api.client.get(f"/orders/{order_id}")).status_code for order_id in (gone, still_open, young)] == [
        404,
        200,
        200,
    ]
    assert await count(conn, "idempotency_keys") == 0


async def test_anonymise(api: Api, conn: AsyncConnection) -> None:
    """
    An anonymised order is whole but for whose it was, and is not counted again.
    """
    old = await aged(api, conn, cancelled=True)

    assert (await purge(conn, anonymise=True), await purge(conn, anonymise=True)) == ([1], [0])
    order = (await api.client.get(f"/orders/{old}")).json()
    assert tuple(order[name] for name in ("customer_id", "reference", "status", "total_minor")) == (
        "erased",
        None,
        "cancelled",
        1530,
    )


async def test_purge_in_batches(conn: AsyncConnection) -> None:
    """
    A large purge is many small transactions.
    """
    await conn.execute(
        """
        INSERT INTO orders (order_id, status, created_at, finished_at)
        SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'done', now(), now() - interval '1 year'
        FROM generate_series(1, %s) AS n
        """,
        [2 * BATCH_ROWS + 5],
    )

    assert await purge(conn) == [BATCH_ROWS, BATCH_ROWS, 5]
    assert await count(conn, "orders") == 0
