import contextlib
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
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
    While a transaction holds the horizon, a batch costs what the first one did, also in an api that has deleted
    nothing itself, and it reads no key that is younger.
    """
    async with await AsyncConnection.connect(database_url) as holder:
        await holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await holder.execute("SELECT count(*) FROM idempotency_keys")
        await keys(conn, 20_000, "8 days")
        expire, beside = KeyExpiry(WEEK), KeyExpiry(WEEK)
        for _ in range(12):
            await expire.run(conn)
        await beside.run(conn)
        await keys(conn, 5000, "6 days")
        await keys(conn, 10, "6 days 23 hours 59 minutes 59 seconds")

        async def are_gone(each: KeyExpiry) -> bool:
            async with conn.transaction():
                blocks = await _blocks(conn)
                await each.run(conn)
                # 20,000 dead entries, and 5,000 younger keys, are hundreds of blocks each.
                assert await _blocks(conn) - blocks < 100
            return await count(conn, "idempotency_keys") == 5000

        await eventually(lambda: are_gone(beside))
        await are_gone(expire)


async def _blocks(conn: AsyncConnection) -> int:
    """Return how many blocks of the table and its indexes this transaction has read."""
    cursor = await conn.execute(
        "SELECT sum(pg_stat_get_xact_blocks_fetched(oid)) FROM pg_class WHERE relname LIKE 'idempotency_keys%'"
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def test_a_look_that_takes_too_long_is_halved(conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If the first batch of an api is cut off, the next ones look at less and less of the past, until one is done.
    """
    await keys(conn, 1, "8 days")
    expire, asked = KeyExpiry(WEEK), []
    real = idempotency_keys_table.expire

    async def slow(conn: AsyncConnection, mark: datetime, upto: datetime, *rest: Any) -> idempotency_keys_table.Expired:
        asked.append(upto - mark)
        if upto - mark > timedelta(days=10_000):
            raise psycopg.OperationalError("cut off")
        return await real(conn, mark, upto, *rest)

    monkeypatch.setattr(idempotency_keys_table, "expire", slow)
    while await count(conn, "idempotency_keys"):
        with contextlib.suppress(psycopg.OperationalError):
            await expire.run(conn)

    assert asked[:3] == [timedelta(days=36500), timedelta(days=18250), timedelta(days=9125)]


async def test_expiry_goes_on_after_a_long_trouble(conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    However many batches failed in a row, as on a full disk, keys expire once that is over.
    """
    await keys(conn, 1, "8 days")
    expire = KeyExpiry(WEEK)
    with monkeypatch.context() as trouble:

        async def fail(*_: Any) -> None:
            raise psycopg.OperationalError("the disk is full")

        trouble.setattr(idempotency_keys_table, "expire", fail)
        for _ in range(100):
            with contextlib.suppress(psycopg.OperationalError):
                await expire.run(conn)
    for _ in range(60):
        await expire.run(conn)

    assert await count(conn, "idempotency_keys") == 0


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
