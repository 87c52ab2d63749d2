from psycopg import AsyncConnection

from orders.database import outbox_table
from tests.eventually import eventually
from tests.orders.conftest import NEW, Api, StartApi


async def age(conn: AsyncConnection, seconds: int) -> None:
    """Let the events wait for so long already."""
    await conn.execute("UPDATE outbox SET created_at = created_at - make_interval(secs => %s)", [seconds])


async def test_off(api: Api, conn: AsyncConnection) -> None:
    """
    Unless it is asked for, no age of the outbox refuses anything.
    """
    await api.place()
    await age(conn, 10_000)

    assert (await api.client.post("/orders", json=NEW)).status_code == 201


async def test_old_events_refuse_placements(start_api: StartApi, conn: AsyncConnection) -> None:
    """
    While the oldest unsent event is too old, placements get a 503; reading goes on, and so do they when it has left.
    """
    api = await start_api(ORDERS_MAX_OUTBOX_AGE="60")
    placed = await api.place()
    await age(conn, 100)

    async def status() -> int:
        return (await api.client.post("/orders", json=NEW)).status_code

    async def refused() -> bool:
        return await status() == 503

    async def accepted() -> bool:
        return await status() == 201

    await eventually(refused)
    assert (await api.client.post("/order/place")).headers["retry-after"] == "1"
    assert (await api.client.get(f"/orders/{placed['order_id']}")).status_code == 200
    await conn.execute("UPDATE outbox SET state = 'sent', settled_at = now()")
    await eventually(accepted)


async def test_what_counts(conn: AsyncConnection) -> None:
    """
    Pending events and those that wait for their route count, a blocked key's do not.
    """
    assert await outbox_table.oldest_seconds(conn) == 0
    await conn.execute(
        """
        INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, headers, body, created_at,
                            state)
        SELECT gen_random_uuid(), 'k' || n, 'orders', 'order.placed', true, 'x', '{}', 'x',
               clock_timestamp() - make_interval(secs => 100 * n), CASE n WHEN 1 THEN 'pending' ELSE 'parked' END
        FROM generate_series(1, 3) AS n
        """
    )
    assert 100 <= await outbox_table.oldest_seconds(conn) < 200
    await conn.execute(
        """
        INSERT INTO outbox_waiting (key, shard, head, exchange, routing_key, blocked, reason)
        SELECT key, shard, id, exchange, routing_key, key = 'k3', 'why' FROM outbox WHERE state = 'parked'
        """
    )
    assert 200 <= await outbox_table.oldest_seconds(conn) < 300
