from datetime import timedelta
from typing import Any

from psycopg import AsyncConnection

from orders.api import key_expiry
from orders.api.key_expiry import KeyExpiry
from orders.database import idempotency_keys_table
from tests.eventually import eventually
from tests.orders.conftest import StartApi

WEEK = 7 * 86400.0


async def keys(conn: AsyncConnection, rows: int, age: str) -> None:
    await conn.execute(
        """
        INSERT INTO idempotency_keys (client, operation, key, fingerprint, order_id, answer, created_at)
        SELECT '', 'place', %(age)s::text || n, sha256(n::text::bytea), gen_random_uuid(), 'x',
               clock_timestamp() - %(age)s::interval
        FROM generate_series(1, %(rows)s) AS n
        """,
        {"age": age, "rows": rows},
    )


async def count(conn: AsyncConnection, table: str) -> int:
    cursor = await conn.execute(f"SELECT count(*) FROM {table}")  # noqa: S608  # the tests' own words
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def test_old_keys_go_in_batches(conn: AsyncConnection) -> None:
    """
    Expiry takes full batches one after the other, leaves what is younger, and then rests.
    """
    await keys(conn, 2 * key_expiry.BATCH_ROWS + 1, "8 days")
    await keys(conn, 10, "6 days")
    expire = KeyExpiry(WEEK)
    left = []
    for _ in range(3):
        await expire.run(conn)
        left.append(await count(conn, "idempotency_keys"))

    assert left == [key_expiry.BATCH_ROWS + 11, 11, 10]
    assert not expire.is_due()


async def test_expiry_does_not_look_below_its_mark(conn: AsyncConnection, database_url: str) -> None:
    """
    While a transaction holds the horizon, a batch costs what the first one did.
    """
    async with await AsyncConnection.connect(database_url) as holder:
        await holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await holder.execute("SELECT count(*) FROM idempotency_keys")
        await keys(conn, 20_000, "8 days")
        expire = KeyExpiry(WEEK)
        for _ in range(10):
            await expire.run(conn)
        await keys(conn, 10, "7 days 1 hour")
        explain: Any = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {idempotency_keys_table.EXPIRE}"
        cursor = await conn.execute(explain, [expire._mark, timedelta(seconds=WEEK), 100], prepare=False)
        row = await cursor.fetchone()

    assert row is not None
    assert row[0][0]["Plan"]["Shared Hit Blocks"] < 500  # 20,000 dead entries would be as many blocks of the table


async def test_an_api_expires_by_itself(start_api: StartApi, conn: AsyncConnection) -> None:
    """
    A running api lets old keys go; a key that is gone starts anew.
    """
    await keys(conn, 100, "8 days")
    await keys(conn, 1, "6 days")
    await start_api()

    async def is_clean() -> bool:
        return await count(conn, "idempotency_keys") == 1

    await eventually(is_clean)
