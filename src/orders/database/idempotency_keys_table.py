"""The table `idempotency_keys`: the order that a client's key stands for, and the first answer."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

COLUMNS: LiteralString = "client, operation, key, fingerprint, order_id, answer"

COLUMNS_ARE_THERE: LiteralString = f"SELECT {COLUMNS}, created_at FROM idempotency_keys LIMIT 0"

READ_MANY: LiteralString = f"""
    SELECT {COLUMNS}
    FROM unnest(%b::text[], %b::text[], %b::text[]) AS asked (client, operation, key)
    JOIN idempotency_keys USING (client, operation, key)
"""

# Takes the keys of `first_use`, which has COLUMNS, unless they are taken already; a part of the statement that uses
# them. Keys are taken in order, or two batches with the same keys would deadlock.
TAKE: LiteralString = f"""
        INSERT INTO idempotency_keys ({COLUMNS})
        SELECT {COLUMNS} FROM first_use ORDER BY client, operation, key
        ON CONFLICT DO NOTHING
        RETURNING order_id
"""

# Has the commit wait for the synchronous standby, as the first commit of what is answered again did: a transaction that
# writes nothing waits for none. The first one may be visible without being on a standby, where its session was ended
# while it waited, or the server restarted.
WRITE_SOMETHING: LiteralString = "pg_logical_emit_message(true, 'orders', '')"

# Not clock_timestamp(): it is volatile, so the scan would go on through all keys that are younger.
EXPIRE: LiteralString = """
    WITH asked AS MATERIALIZED (
        SELECT least(statement_timestamp() - %b::interval, %b::timestamptz) AS upto,
               statement_timestamp() - %b::interval <= %b::timestamptz AS is_last,
               pg_try_advisory_xact_lock('idempotency_keys'::regclass::oid::integer, 0) AS is_ours
    ), gone AS (
        DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM idempotency_keys
            WHERE created_at >= %b AND created_at < (SELECT upto FROM asked) AND (SELECT is_ours FROM asked)
            ORDER BY created_at LIMIT %b
            FOR UPDATE SKIP LOCKED
        ))
        RETURNING created_at
    ), counted AS (
        SELECT count(*) AS rows, max(created_at) AS newest FROM gone
    )
    SELECT rows, CASE WHEN NOT is_ours THEN NULL WHEN rows = %b THEN newest ELSE upto END,
           is_ours AND (rows = %b OR NOT is_last)
    FROM counted, asked
"""


class Key(NamedTuple):
    """A key within its scope."""

    client: str
    operation: str
    key: str


class FirstUse(NamedTuple):
    """The first use of a key."""

    fingerprint: bytes  # SHA-256 of the request, to tell a repeat from a misuse of the key
    order_id: UUID
    answer: bytes  # the body


class Expired(NamedTuple):
    """The keys that were deleted."""

    rows: int
    mark: datetime | None  # up to here none is left; None if another session is deleting at this moment
    more: bool  # whether others may be left


async def read_many(conn: AsyncConnection, keys: Sequence[Key]) -> dict[Key, FirstUse]:
    """Return the first use of each key that has one."""
    columns = [list(column) for column in zip(*keys, strict=True)]
    cursor = await conn.execute(READ_MANY, columns, prepare=True)
    return {Key(*row[:3]): FirstUse(*row[3:]) for row in await cursor.fetchall()}


async def expire(conn: AsyncConnection, mark: datetime, upto: datetime, retention: timedelta, limit: int) -> Expired:
    """Delete up to `limit` keys that are older than `retention`, the oldest first, from the time `mark` up to `upto`.

    The next call goes on from `Expired.mark`.
    """
    cursor = await conn.execute(EXPIRE, [retention, upto, retention, upto, mark, limit, limit, limit], prepare=True)
    row = await cursor.fetchone()
    assert row is not None
    return Expired(*row)
