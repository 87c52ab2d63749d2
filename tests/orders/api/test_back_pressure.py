import pytest
from psycopg import AsyncConnection

from orders.database import orders_table, outbox_table
from orders.database.outbox_table import OldestEvent
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
    assert await OldestEvent().seconds(conn) == 0
    await conn.execute(
        """
        INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, headers, body, created_at,
                            state)
        SELECT gen_random_uuid(), 'k' || n, 'orders', 'order.placed', true, 'x', '{}', 'x',
               clock_timestamp() - make_interval(secs => 100 * n), CASE n WHEN 1 THEN 'pending' ELSE 'parked' END
        FROM generate_series(1, 3) AS n
        """
    )
    assert 100 <= await OldestEvent().seconds(conn) < 200
    await conn.execute(
        """
        INSERT INTO outbox_waiting (key, shard, head, exchange, routing_key, blocked, reason)
        SELECT key, shard, id, exchange, routing_key, key = 'k3', 'why' FROM outbox WHERE state = 'parked'
        """
    )
    assert 200 <= await OldestEvent().seconds(conn) < 300


ADD = """
    INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, headers, body, created_at)
    SELECT gen_random_uuid(), 'k' || n, 'orders', 'order.placed', true, 'x', '{}', 'x',
           clock_timestamp() - interval '1 h'
    FROM generate_series(1, %s) AS n
"""


async def test_a_writer_that_stays_open(
    conn: AsyncConnection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    While it holds the relay's mark, a look reads no dead entries of the rows that were sent above it, after the first
    one, which goes through them in windows; and it finds what is unsent.
    """
    monkeypatch.setattr(outbox_table, "WINDOW_ROWS", 1000)
    for name, value in orders_table.BY_INDEX.items():
        await conn.execute("SELECT set_config(%s, %s, false)", [name, value])
    oldest = OldestEvent()

    async def blocks() -> int:
        cursor = await conn.execute(
            "SELECT sum(pg_stat_get_xact_blocks_fetched(oid))::bigint FROM pg_class WHERE relname LIKE 'outbox%'"
        )
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    async with await AsyncConnection.connect(database_url) as writer:
        await writer.execute(ADD, [1])
        await conn.execute(ADD, [20_000])
        await conn.execute("UPDATE outbox SET state = 'sent', settled_at = clock_timestamp()")
        assert await oldest.seconds(conn) == 0
        await conn.execute(ADD, [1])
        assert await oldest.seconds(conn) > 3000
        async with conn.transaction():
            before = await blocks()
            assert await oldest.seconds(conn) > 3000
            assert await blocks() - before < 100
        await conn.execute("UPDATE outbox SET state = 'sent', settled_at = clock_timestamp()")
        assert await oldest.seconds(conn) == 0
