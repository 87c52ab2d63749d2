"""The statements of upkeep: make partitions ahead, detach, drop and attach them."""

from typing import Any, LiteralString

import msgspec
from psycopg import sql

from relay.database import Connection

SESSION: LiteralString = """
    SET tcp_user_timeout = '5s';
    SET statement_timeout = '20s';
    SET default_transaction_isolation = 'read committed';
    SET lock_timeout = '2s'
"""

BE_THE_KEEPER: LiteralString = """
    -- Not one of the numbers that claimers hold for as long as they are connected (outbox_table.py).
    SELECT pg_try_advisory_lock('outbox'::regclass::oid::integer, 1003)
"""

ADD: LiteralString = "SELECT outbox_add_partitions(%(ahead)s)"

PARTITIONS: LiteralString = """
    SELECT n.nspname, c.relname,
           substring(pg_get_expr(c.relpartbound, c.oid) FROM 'FROM [(]''([0-9]+)''[)]')::bigint,
           substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO [(]''([0-9]+)''[)]')::bigint,
           i.inhdetachpending, d.partition IS NOT NULL
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN outbox_detached d ON d.partition = c.relname
    WHERE i.inhparent = 'outbox'::regclass
    ORDER BY 3
"""

DETACHED: LiteralString = """
    -- Those that are recorded are ours: a keeper was killed between the detaching and the drop.
    SELECT n.nspname, c.relname, coalesce(d.low, 0), coalesce(d.high, 0), false, d.partition IS NOT NULL
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN outbox_detached d ON d.partition = c.relname
    WHERE c.relkind = 'r' AND NOT c.relispartition
      AND (d.partition IS NOT NULL OR c.relname ~ '^outbox_from_[0-9]+$')
      AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'outbox'::regclass)
    ORDER BY length(c.relname), c.relname
"""

RECORD: LiteralString = """
    INSERT INTO outbox_detached (partition, low, high) VALUES (%(partition)s, %(low)s, %(high)s)
    ON CONFLICT (partition) DO UPDATE SET low = excluded.low, high = excluded.high, since = clock_timestamp()
"""

FORGET: LiteralString = "DELETE FROM outbox_detached WHERE partition = %(partition)s"

FORGET_OTHERS: LiteralString = """
    -- Of tables that are partitions again, or that are gone: an operator has attached, renamed or dropped them since,
    -- and decides what becomes of them next.
    DELETE FROM outbox_detached d
    WHERE NOT EXISTS (
        SELECT FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = 'outbox'::regclass
        WHERE c.relname = d.partition
          AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'outbox'::regclass)
          AND (NOT c.relispartition OR i.inhdetachpending)
    )
"""

SAVED_MARK: LiteralString = "SELECT mark FROM outbox_mark"

PARKED_BETWEEN: LiteralString = """
    SELECT EXISTS (SELECT FROM outbox_parked WHERE id >= %(low)s AND id < %(high)s)
"""


class Partition(msgspec.Struct, frozen=True):
    """One partition of the outbox: the ids from `low` up to but not including `high`."""

    schema: str
    name: str
    low: int
    high: int
    detaching: bool  # a DETACH of it was begun, by the relay or an operator, and not finished
    recorded: bool  # as one that the relay detaches

    @property
    def table(self) -> sql.Identifier:
        """Its name with its schema, quoted."""
        return sql.Identifier(self.schema, self.name)


async def be_the_keeper(conn: Connection) -> bool:
    """Try to become the session that keeps the partitions, until it ends; return whether it is."""
    return bool(await _value(conn, BE_THE_KEEPER))


async def add(conn: Connection, ahead: int) -> int:
    """Make partitions until `ahead` of them lie above the newest id; return how many were made."""
    return int(await _value(conn, ADD, {"ahead": ahead}))


async def partitions(conn: Connection) -> list[Partition]:
    """Return the partitions in order of their ids."""
    return [Partition(*row) for row in await (await conn.execute(PARTITIONS)).fetchall()]


async def detached(conn: Connection) -> list[Partition]:
    """Return the detached partitions that have not been dropped; one that is not recorded has the bounds 0 and 0."""
    return [Partition(*row) for row in await (await conn.execute(DETACHED)).fetchall()]


async def forget_others(conn: Connection) -> None:
    """Drop the records of partitions that an operator has attached, renamed or dropped."""
    await conn.execute(FORGET_OTHERS)


async def saved_mark(conn: Connection) -> int:
    """Return the persisted mark."""
    return int(await _value(conn, SAVED_MARK))


async def has_parked(conn: Connection, partition: Partition) -> bool:
    """Return whether a row of this partition is parked."""
    return bool(await _value(conn, PARKED_BETWEEN, {"low": partition.low, "high": partition.high}))


async def newest_age(conn: Connection, partition: Partition) -> float | None:
    """Return the age in seconds of the partition's last row, or None if it has none."""
    statement = sql.SQL(
        "SELECT (extract(epoch FROM clock_timestamp()) - extract(epoch FROM created_at))::float8 FROM {} "
        "ORDER BY id DESC LIMIT 1"
    )
    row = await (await conn.execute(statement.format(partition.table))).fetchone()
    return None if row is None else row[0]


async def detach(conn: Connection, partition: Partition) -> None:
    """Detach a partition without blocking writers: wait for the transactions that may still see it.

    The record comes first, in a transaction of its own: if the detaching is interrupted, the next round finishes it.
    """
    await conn.execute(RECORD, {"partition": partition.name, "low": partition.low, "high": partition.high})
    how = sql.SQL("FINALIZE" if partition.detaching else "CONCURRENTLY")
    await conn.execute(sql.SQL("ALTER TABLE outbox DETACH PARTITION {} {}").format(partition.table, how))


async def drop_if_settled(conn: Connection, partition: Partition) -> bool:
    """Drop a detached partition and its record, unless it has an unsettled row; return whether it was dropped.

    The check runs under a lock that excludes every other transaction.
    """
    async with conn.transaction():
        await conn.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(partition.table))
        unsettled = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE state IN ('pending', 'parked'))")
        if await _value(conn, unsettled.format(partition.table)):
            return False
        await conn.execute(sql.SQL("DROP TABLE {}").format(partition.table))
        await conn.execute(FORGET, {"partition": partition.name})
        return True


async def attach(conn: Connection, partition: Partition) -> None:
    """Attach a detached partition again, and drop its record."""
    bounds = sql.SQL("ALTER TABLE outbox ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})")
    async with conn.transaction():
        await conn.execute(bounds.format(partition.table, sql.Literal(partition.low), sql.Literal(partition.high)))
        await conn.execute(FORGET, {"partition": partition.name})


async def _value(
    conn: Connection, statement: LiteralString | sql.Composed, values: dict[str, Any] | None = None
) -> Any:
    row = await (await conn.execute(statement, values)).fetchone()
    assert row is not None
    return row[0]
