"""The loop's statements, where PostgreSQL's plan is part of what they mean."""

from psycopg import AsyncConnection

from relay.database import connect
from relay.outbox_table import SESSION, take_shards


async def test_no_more_shards_are_locked_than_taken(conn: AsyncConnection, database_url: str) -> None:
    """
    The locks of a share are those of its shards: each one more would keep a shard's rows from every other lane.
    """
    own = await connect(database_url, "test", SESSION)
    async with own.transaction():
        taken = await take_shards(own, first=60, most=10)
        locked = await (
            await conn.execute(
                "SELECT objid::integer FROM pg_locks WHERE locktype = 'advisory' AND pid = %s ORDER BY objid",
                (own.info.backend_pid,),
            )
        ).fetchall()
    await own.close()

    assert taken == [60, 61, 62, 63, 0, 1, 2, 3, 4, 5]
    assert sorted(taken) == [shard for (shard,) in locked]
