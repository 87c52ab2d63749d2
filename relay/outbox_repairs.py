"""The statements of operators: list what is blocked, retry it, skip it, and requeue what was sent.

Each statement that changes a row which is not new takes the lock of the row's shard first, as the relays do. Otherwise
SKIP LOCKED would make a relay overtake the row that is being changed.
"""

import datetime
from typing import LiteralString, NamedTuple

import msgspec

from relay import outbox_table
from relay.database import Connection

SESSION: LiteralString = """
    SET idle_in_transaction_session_timeout = '10s';
    SET statement_timeout = '30s';
    SET default_transaction_isolation = 'read committed';
    SET synchronous_commit = on;
    SET plan_cache_mode = force_custom_plan;
    SET jit = off
"""

BLOCKED: LiteralString = """
    SELECT w.key, w.head, w.exchange, w.routing_key, w.reason, w.since,
           (SELECT count(*) FROM outbox_parked p WHERE p.key = w.key)
    FROM outbox_waiting w WHERE w.blocked ORDER BY w.head LIMIT %(limit)s
"""

BLOCKED_KEYS: LiteralString = "SELECT key FROM outbox_waiting WHERE blocked ORDER BY head"

LOCK_KEY: LiteralString = """
    SELECT pg_advisory_xact_lock('outbox'::regclass::oid::integer, (hashtextextended(%(key)s, 0) & 63)::integer)
"""

UNBLOCK: LiteralString = """
    UPDATE outbox_waiting SET blocked = false, since = clock_timestamp() WHERE key = %(key)s AND blocked
"""

PARKED_ROW: LiteralString = "SELECT key FROM outbox_parked WHERE id = %(id)s"

STATE_OF: LiteralString = "SELECT state FROM outbox WHERE id = %(id)s"

SKIP: LiteralString = """
    UPDATE outbox SET state = 'skipped', settled_at = clock_timestamp() WHERE id = %(id)s AND state = 'parked'
"""

UNBLOCK_IF_HEAD: LiteralString = """
    UPDATE outbox_waiting SET blocked = false, since = clock_timestamp() WHERE key = %(key)s AND head = %(id)s
"""

AUDIT: LiteralString = """
    INSERT INTO outbox_audit (actor, command, key, row_id, rows, reason)
    VALUES (%(actor)s, %(command)s, %(key)s, %(row_id)s, %(rows)s, %(reason)s)
    RETURNING id
"""

AUDIT_MORE: LiteralString = "UPDATE outbox_audit SET rows = rows + %(rows)s WHERE id = %(id)s"

BOUNDS: LiteralString = """
    SELECT coalesce((SELECT id FROM outbox ORDER BY id LIMIT 1), 1), last_value FROM outbox_id_seq
"""

TIME_AT: LiteralString = "SELECT id, created_at FROM outbox WHERE id >= %(id)s ORDER BY id LIMIT 1"

SENT_ROWS: LiteralString = """
    SELECT id, shard FROM outbox
    WHERE id > %(above)s AND id <= %(upto)s AND state = 'sent' AND created_at >= %(since)s
      AND (%(routing_key)s::text IS NULL OR routing_key = %(routing_key)s)
      AND (%(key)s::text IS NULL OR key = %(key)s)
    ORDER BY id LIMIT %(limit)s
"""

LOCK_SHARDS: LiteralString = """
    SELECT pg_advisory_xact_lock('outbox'::regclass::oid::integer, shard)
    FROM (SELECT DISTINCT shard FROM unnest(%(shards)s::int[]) AS s (shard) ORDER BY shard) AS shards
"""

REQUEUE: LiteralString = """
    -- Blocked, so that a key's rows go once all of them are here. A key that was blocked already comes to its rejected
    -- row again, and is blocked there again.
    WITH again AS (
        UPDATE outbox SET state = 'parked', settled_at = NULL
        WHERE id = ANY (%(ids)s) AND id >= %(low)s AND id <= %(high)s AND state = 'sent'
        RETURNING id, shard, key, exchange, routing_key
    ), listed AS (
        INSERT INTO outbox_parked (id, shard, key, exchange, routing_key)
        SELECT id, shard, key, exchange, routing_key FROM again
        RETURNING id
    ), waiting AS (
        INSERT INTO outbox_waiting AS w (key, shard, head, exchange, routing_key, blocked, reason)
        SELECT DISTINCT ON (key) key, shard, id, exchange, routing_key, true, %(reason)s
        FROM again ORDER BY key, id
        ON CONFLICT (key) DO UPDATE
            SET blocked = true, reason = excluded.reason, since = clock_timestamp(),
                head = least(w.head, excluded.head),
                exchange = CASE WHEN excluded.head < w.head THEN excluded.exchange ELSE w.exchange END,
                routing_key = CASE WHEN excluded.head < w.head THEN excluded.routing_key ELSE w.routing_key END
    )
    SELECT count(*) FROM listed
"""

PAUSED: LiteralString = """
    SELECT w.key, w.shard, (SELECT count(*) FROM outbox_parked p WHERE p.key = w.key)
    FROM outbox_waiting w WHERE w.blocked AND w.reason = %(reason)s ORDER BY w.head LIMIT %(limit)s
"""

RESUME: LiteralString = """
    UPDATE outbox_waiting SET blocked = false, since = clock_timestamp()
    WHERE key = ANY (%(keys)s) AND blocked AND reason = %(reason)s
"""

NOTIFY: LiteralString = "NOTIFY outbox"


class NotBlocked(Exception):
    """The row is not parked, or the key is not blocked."""


class Blocked(msgspec.Struct, frozen=True):
    """A key that waits for an operator, and why."""

    key: str
    row_id: int  # of its first parked row
    exchange: str
    routing_key: str
    reason: str
    since: datetime.datetime  # blocked since this time
    rows: int  # that are parked


class RequeueFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which sent rows to send again: those of this time and later, of this routing key and key; None is any."""

    since: datetime.datetime  # with a time zone
    routing_key: str | None = None
    key: str | None = None


class IdRange(NamedTuple):
    """Ids above `above` and up to `upto`."""

    above: int
    upto: int


class SentRows(NamedTuple):
    """Rows that were sent: the ids in ascending order, and the shard of each."""

    ids: list[int]
    shards: list[int]


class Resumed(NamedTuple):
    """How many keys a requeue let go on, and how many rows are parked under them."""

    keys: int
    rows: int


async def blocked(conn: Connection, limit: int) -> list[Blocked]:
    """Return the blocked keys, those that wait longest first."""
    return [Blocked(*row) for row in await (await conn.execute(BLOCKED, {"limit": limit})).fetchall()]


async def blocked_keys(conn: Connection) -> list[str]:
    """Return all blocked keys."""
    return [row[0] for row in await (await conn.execute(BLOCKED_KEYS)).fetchall()]


async def retry(conn: Connection, key: str, actor: str) -> None:
    """Let a blocked key be tried again from its head on."""
    async with conn.transaction():
        await conn.execute(LOCK_KEY, {"key": key})
        if (await conn.execute(UNBLOCK, {"key": key})).rowcount == 0:
            raise NotBlocked(f"key {key!r} is not blocked")
        await _audit(conn, actor, "retry", key, None, 1, "")
    await conn.execute(NOTIFY)


async def skip(conn: Connection, row_id: int, reason: str, actor: str) -> str:
    """Skip one parked row for good, so that its key goes on; return the key. Raises NotBlocked if it is not parked."""
    async with conn.transaction():
        row = await (await conn.execute(PARKED_ROW, {"id": row_id})).fetchone()
        if row is None:
            raise NotBlocked(await _why_not(conn, row_id))
        key = str(row[0])
        await conn.execute(LOCK_KEY, {"key": key})
        # Check again under the lock: a relay may have sent the row in between.
        if (await conn.execute(SKIP, {"id": row_id})).rowcount == 0:
            raise NotBlocked(await _why_not(conn, row_id))
        await conn.execute(UNBLOCK_IF_HEAD, {"key": key, "id": row_id})
        await outbox_table.remove_parked_rows(conn, [row_id], [key])
        await _audit(conn, actor, "skip", key, row_id, 1, reason)
    await conn.execute(NOTIFY)
    return key


async def _why_not(conn: Connection, row_id: int) -> str:
    row = await (await conn.execute(STATE_OF, {"id": row_id})).fetchone()
    return f"row {row_id} is {row[0]}, not parked" if row is not None else f"there is no row {row_id}"


async def ids_since(conn: Connection, since: datetime.datetime) -> IdRange:
    """Return a range of ids that holds all rows since this time, found by halving: no index has the time.

    The range begins an hour early, since ids follow the order of writing and not that of the rows' times.
    """
    row = await (await conn.execute(BOUNDS)).fetchone()
    assert row is not None
    low, high = row[0] - 1, row[1]
    above, target = low, since - datetime.timedelta(hours=1)
    while high - low > 1:
        middle = (low + high) // 2
        found = await (await conn.execute(TIME_AT, {"id": middle})).fetchone()
        if found is None or found[1] >= target:
            high = middle
        else:
            low = above = middle
    return IdRange(above, row[1])


async def sent_rows(conn: Connection, chosen: RequeueFilter, ids: IdRange, limit: int) -> SentRows:
    """Return the next sent rows that match, at most `limit`; without any, its lists are empty."""
    cursor = await conn.execute(
        SENT_ROWS,
        {
            "above": ids.above,
            "upto": ids.upto,
            "since": chosen.since,
            "routing_key": chosen.routing_key,
            "key": chosen.key,
            "limit": limit,
        },
    )
    rows = await cursor.fetchall()
    return SentRows([row[0] for row in rows], [row[1] for row in rows])


async def open_requeue(conn: Connection, chosen: RequeueFilter, actor: str) -> int:
    """Write the audit row of a requeue; return its id, under which `park_sent` counts its rows."""
    asked = " ".join(
        part
        for part in (
            f"since {chosen.since.isoformat()}",
            f"type {chosen.routing_key}" if chosen.routing_key else "",
        )
        if part
    )
    return await _audit(conn, actor, "requeue", chosen.key, None, 0, asked)


async def park_sent(conn: Connection, audit_id: int, found: SentRows) -> int:
    """Park these sent rows and block their keys until `resume_keys`; return how many rows were parked."""
    async with conn.transaction():
        await conn.execute(LOCK_SHARDS, {"shards": found.shards})
        values = {"ids": found.ids, "low": found.ids[0], "high": found.ids[-1], "reason": _paused_by(audit_id)}
        row = await (await conn.execute(REQUEUE, values)).fetchone()
        assert row is not None
        await conn.execute(AUDIT_MORE, {"rows": row[0], "id": audit_id})
    return int(row[0])


async def resume_keys(conn: Connection, audit_id: int, limit: int) -> Resumed:
    """Let at most `limit` keys go on that a requeue has blocked, those with the oldest rows first."""
    async with conn.transaction():
        paused = await (await conn.execute(PAUSED, {"reason": _paused_by(audit_id), "limit": limit})).fetchall()
        await conn.execute(LOCK_SHARDS, {"shards": [row[1] for row in paused]})
        await conn.execute(RESUME, {"keys": [row[0] for row in paused], "reason": _paused_by(audit_id)})
    await conn.execute(NOTIFY)
    return Resumed(len(paused), sum(row[2] for row in paused))


def _paused_by(audit_id: int) -> str:
    """Return why a requeue has blocked its keys, for an operator who finds them after the command was killed."""
    return f"held by requeue {audit_id} until all its rows are here; if that has ended, retry"


async def _audit(
    conn: Connection, actor: str, command: LiteralString, key: str | None, row_id: int | None, rows: int, reason: str
) -> int:
    values = {"actor": actor, "command": command, "key": key, "row_id": row_id, "rows": rows, "reason": reason}
    row = await (await conn.execute(AUDIT, values)).fetchone()
    assert row is not None
    return int(row[0])
