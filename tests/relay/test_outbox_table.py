"""The loop's statements, where PostgreSQL's plan is part of what they mean."""

import asyncio
from typing import LiteralString

import pytest
from psycopg import AsyncConnection, sql

from relay import outbox_partitions, outbox_repairs, outbox_table
from relay.database import DatabaseLost, connect
from relay.outbox_table import SESSION, begin_and_take, settle
from tests.eventually import eventually
from tests.relay.service import append, state_of


async def test_no_more_shards_are_locked_than_taken(conn: AsyncConnection, database_url: str) -> None:
    """
    The locks of a share are those of its shards: each one more would keep a shard's rows from every other claimer.
    """
    own = await connect(database_url, "test", SESSION)
    taken = await begin_and_take(own, first=60, limit=10)
    locked = await (
        await conn.execute(
            "SELECT objid::integer FROM pg_locks WHERE locktype = 'advisory' AND pid = %s ORDER BY objid",
            (own.info.backend_pid,),
        )
    ).fetchall()
    await own.close()

    assert taken == [60, 61, 62, 63, 0, 1, 2, 3, 4, 5]
    assert sorted(taken) == [shard for (shard,) in locked]


async def test_a_claim_of_a_partition_that_is_being_detached(conn: AsyncConnection, database_url: str) -> None:
    """
    A row was requeued while the keeper had found its partition past its time: the claim is not recorded, and made anew.
    """
    row = await append(conn)
    own, keeper = await connect(database_url, "test", SESSION), await connect(database_url, "test", SESSION)
    await own.execute("BEGIN")
    await own.execute("SELECT FROM outbox WHERE id = %s FOR UPDATE", (row,))
    (partition, *_) = await outbox_partitions.partitions(keeper)
    detaching = asyncio.create_task(outbox_partitions.detach(keeper, partition), name="detach")

    async def is_detaching() -> bool:
        return (await outbox_partitions.partitions(conn))[0].detaching

    await eventually(is_detaching)
    with pytest.raises(DatabaseLost):
        await settle(own, [row], [], and_commit=False)
    await own.execute("ROLLBACK")
    await detaching
    await outbox_partitions.attach(conn, partition)
    assert await state_of(conn, row) == "pending"
    await own.close()
    await keeper.close()


@pytest.mark.parametrize("session", [outbox_table.SESSION, outbox_repairs.SESSION, outbox_partitions.SESSION])
async def test_each_statement_sees_the_present(
    conn: AsyncConnection, database_url: str, session: LiteralString
) -> None:
    """
    Also in a database whose transactions see the past by default.
    """
    setting = sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = 'serializable'")
    await conn.execute(setting.format(sql.Identifier(conn.info.dbname)))
    own = await connect(database_url, "test", session)
    async with own.transaction():
        row = await (await own.execute("SELECT current_setting('transaction_isolation')")).fetchone()
    await own.close()

    assert row == ("read committed",)
