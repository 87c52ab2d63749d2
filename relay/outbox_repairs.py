"""The statements of operators: what waits, and to let it go on, skip it, or send it again.

Whoever changes a row that is not new takes its shard's lock first, as the relays do: SKIP LOCKED would otherwise have
them overtake the row that is just being changed.
"""

import datetime
from typing import LiteralString

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
    FROM outbox_waiting w WHERE w.blocked ORDER BY w.head LIMIT %(most)s
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
    ORDER BY id LIMIT %(most)s
"""

LOCK_SHARDS: LiteralString = """
    SELECT pg_advisory_xact_lock('outbox'::regclass::oid::integer, shard)
    FROM (SELECT DISTINCT shard FROM unnest(%(shards)s::int[]) AS s (shard) ORDER BY shard) AS shards
"""

REQUEUE: LiteralString = """
    -- Blocked, so that a key's rows go once all of them are here. A key that was blocked already comes to its refused
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

HELD: LiteralString = """
    SELECT w.key, w.shard, (SELECT count(*) FROM outbox_parked p WHERE p.key = w.key)
    FROM outbox_waiting w WHERE w.blocked AND w.reason = %(reason)s ORDER BY w.head LIMIT %(most)s
"""

LET_GO: LiteralString = """
    UPDATE outbox_waiting SET blocked = false, since = clock_timestamp()
    WHERE key = ANY (%(keys)s) AND blocked AND reason = %(reason)s
"""

NOTIFY: LiteralString = "NOTIFY outbox"


class NotBlocked(Exception):
    """The row or the key does not wait for an operator."""


class Blocked(msgspec.Struct, frozen=True):
    """A key that waits for an operator, and why."""

    key: str
    row_id: int
    exchange: str
    routing_key: str
    reason: str
    since: datetime.datetime
    rows: int


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which sent rows are to be sent again."""

    since: datetime.datetime
    routing_key: str | None = None
    key: str | None = None


async def blocked(conn: Connection, most: int) -> list[Blocked]:
    """Return the blocked keys, those that wait longest first."""
    return [Blocked(*row) for row in await (await conn.execute(BLOCKED, {"most": most})).fetchall()]


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
    """Give up one parked row for good; its key goes on behind it. Return the key."""
    async with conn.transaction():
        row = await (await conn.execute(PARKED_ROW, {"id": row_id})).fetchone()
        if row is None:
            raise NotBlocked(await _why_not(conn, row_id))
        key = str(row[0])
        await conn.execute(LOCK_KEY, {"key": key})
        # Looked at again under the lock: a relay may have sent it while we waited.
        if (await conn.execute(SKIP, {"id": row_id})).rowcount == 0:
            raise NotBlocked(await _why_not(conn, row_id))
        await conn.execute(UNBLOCK_IF_HEAD, {"key": key, "id": row_id})
        await outbox_table.unlist_rows(conn, [row_id], [key])
        await _audit(conn, actor, "skip", key, row_id, 1, reason)
    await conn.execute(NOTIFY)
    return key


async def _why_not(conn: Connection, row_id: int) -> str:
    row = await (await conn.execute(STATE_OF, {"id": row_id})).fetchone()
    return f"row {row_id} is {row[0]}, not parked" if row is not None else f"there is no row {row_id}"


async def first_id_since(conn: Connection, since: datetime.datetime) -> tuple[int, int]:
    """Return ids between which all rows since then lie, found by halving: nothing is indexed by time.

    An hour's margin, since ids are drawn when a transaction writes and not in the order of its clock.
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
    return above, row[1]


async def sent_rows(conn: Connection, choice: Choice, above: int, upto: int, most: int) -> tuple[list[int], list[int]]:
    """Return ids and shards of the next sent rows of this choice."""
    cursor = await conn.execute(
        SENT_ROWS,
        {
            "above": above,
            "upto": upto,
            "since": choice.since,
            "routing_key": choice.routing_key,
            "key": choice.key,
            "most": most,
        },
    )
    rows = await cursor.fetchall()
    return [row[0] for row in rows], [row[1] for row in rows]


async def open_requeue(conn: Connection, choice: Choice, actor: str) -> int:
    """Write the audit row of a requeue; return its id, under which its rows are counted."""
    asked = " ".join(
        part
        for part in (
            f"since {choice.since.isoformat()}",
            f"type {choice.routing_key}" if choice.routing_key else "",
        )
        if part
    )
    return await _audit(conn, actor, "requeue", choice.key, None, 0, asked)


async def hold(conn: Connection, audit_id: int, ids: list[int], shards: list[int]) -> int:
    """Park these sent rows, and hold their keys until `let_go`; return how many rows."""
    async with conn.transaction():
        await conn.execute(LOCK_SHARDS, {"shards": shards})
        values = {"ids": ids, "low": ids[0], "high": ids[-1], "reason": _held_by(audit_id)}
        row = await (await conn.execute(REQUEUE, values)).fetchone()
        assert row is not None
        await conn.execute(AUDIT_MORE, {"rows": row[0], "id": audit_id})
    return int(row[0])


async def let_go(conn: Connection, audit_id: int, most: int) -> tuple[int, int]:
    """Let so many of the keys go that a requeue holds, the oldest first; return how many they are, and their rows."""
    async with conn.transaction():
        held = await (await conn.execute(HELD, {"reason": _held_by(audit_id), "most": most})).fetchall()
        await conn.execute(LOCK_SHARDS, {"shards": [row[1] for row in held]})
        await conn.execute(LET_GO, {"keys": [row[0] for row in held], "reason": _held_by(audit_id)})
    await conn.execute(NOTIFY)
    return len(held), sum(row[2] for row in held)


def _held_by(audit_id: int) -> str:
    """Return why the keys of a requeue are blocked, for whoever finds them so when the command was killed."""
    return f"held by requeue {audit_id} until all its rows are here; if that has ended, retry"


async def _audit(
    conn: Connection, actor: str, command: LiteralString, key: str | None, row_id: int | None, rows: int, reason: str
) -> int:
    values = {"actor": actor, "command": command, "key": key, "row_id": row_id, "rows": rows, "reason": reason}
    row = await (await conn.execute(AUDIT, values)).fetchone()
    assert row is not None
    return int(row[0])
