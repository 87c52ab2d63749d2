"""The statements that keep the outbox's partitions: made ahead, dropped after their time."""

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
           i.inhdetachpending
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE i.inhparent = 'outbox'::regclass
    ORDER BY 3
"""

DETACHED: LiteralString = """
    -- What a keeper left that was killed between the detaching and the drop.
    SELECT n.nspname, c.relname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND NOT c.relispartition AND c.relname ~ '^outbox_from_[0-9]+$'
      AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'outbox'::regclass)
    ORDER BY length(c.relname), c.relname
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
    detaching: bool

    @property
    def table(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)


async def be_the_keeper(conn: Connection) -> bool:
    """Return whether this session is the one that keeps the partitions now."""
    return bool(await _value(conn, BE_THE_KEEPER))


async def add(conn: Connection, ahead: int) -> int:
    """Make partitions until `ahead` lie above the newest id; return how many were made."""
    return int(await _value(conn, ADD, {"ahead": ahead}))


async def partitions(conn: Connection) -> list[Partition]:
    """Return the partitions in order of their ids."""
    return [Partition(*row) for row in await (await conn.execute(PARTITIONS)).fetchall()]


async def detached(conn: Connection) -> list[sql.Identifier]:
    """Return the tables that were partitions once and have not been dropped."""
    return [sql.Identifier(schema, name) for schema, name in await (await conn.execute(DETACHED)).fetchall()]


async def saved_mark(conn: Connection) -> int:
    """Return the persisted mark."""
    return int(await _value(conn, SAVED_MARK))


async def has_parked(conn: Connection, partition: Partition) -> bool:
    """Return whether a row of this partition waits."""
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
    """Detach without stopping writers: it waits for those who may still see the partition, and blocks nobody.

    Cut short, it leaves the partition half detached, and is finished the next time.
    """
    how = sql.SQL("FINALIZE" if partition.detaching else "CONCURRENTLY")
    await conn.execute(sql.SQL("ALTER TABLE outbox DETACH PARTITION {} {}").format(partition.table, how))


async def drop_if_settled(conn: Connection, table: sql.Identifier) -> bool:
    """Drop a detached table, after looking under the lock that keeps everyone out; False leaves it as it is."""
    async with conn.transaction():
        await conn.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
        unsettled = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE state IN ('pending', 'parked'))")
        if await _value(conn, unsettled.format(table)):
            return False
        await conn.execute(sql.SQL("DROP TABLE {}").format(table))
        return True


async def attach(conn: Connection, table: sql.Identifier, low: int, high: int) -> None:
    """Put a detached table back."""
    bounds = sql.SQL("ALTER TABLE outbox ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})")
    await conn.execute(bounds.format(table, sql.Literal(low), sql.Literal(high)))


async def bounds_of(conn: Connection, table: sql.Identifier) -> tuple[int, int]:
    """Return the bounds that a detached partition had, from the CHECK that DETACH CONCURRENTLY left on it."""
    statement = sql.SQL(
        "SELECT substring(d FROM 'id >= ''?([0-9]+)')::bigint, substring(d FROM 'id < ''?([0-9]+)')::bigint "
        "FROM (SELECT pg_get_constraintdef(oid) AS d FROM pg_constraint "
        "WHERE conrelid = {}::regclass AND contype = 'c') AS checks "
        "WHERE d LIKE '%id >= %' AND d LIKE '%id < %'"
    )
    row = await (await conn.execute(statement.format(sql.Literal(table.as_string())))).fetchone()
    assert row is not None, f"{table.as_string()} was detached by hand, and its bounds are lost"
    return row[0], row[1]


async def _value(
    conn: Connection, statement: LiteralString | sql.Composed, values: dict[str, Any] | None = None
) -> Any:
    row = await (await conn.execute(statement, values)).fetchone()
    assert row is not None
    return row[0]
