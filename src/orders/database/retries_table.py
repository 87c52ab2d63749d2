"""The orders that wait for a retry, each with the message to send again. `work/due_retries.py` has the clock."""

from datetime import datetime
from typing import LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

from orders.database import outbox_table

COLUMNS: LiteralString = "order_id, due_at, event_id, body, traceparent"

COLUMNS_ARE_THERE: LiteralString = f"SELECT {COLUMNS} FROM retries LIMIT 0"

# Adds a retry for each row of `postponed`, in `seconds` from now: the last part of postpone_orders.POSTPONE.
ADD: LiteralString = f"""
    INSERT INTO retries ({COLUMNS})
    SELECT order_id, clock_timestamp() + make_interval(secs => seconds), event_id, body, traceparent
    FROM postponed
    ON CONFLICT (order_id) DO UPDATE SET due_at = excluded.due_at
"""

# Adds the message of an order that the broker gave up, so that it is sent once more. The pause is half the order's age,
# a second to a minute, and less up to half of it at random: a policy that goes on taking messages costs little, and
# many orders come back spread over a minute. A retry that waits already stays, unless it is of an earlier event.
BRING_BACK: LiteralString = f"""
    INSERT INTO retries ({COLUMNS})
    SELECT order_id,
           clock_timestamp() + (0.5 + random() / 2) * least(
               greatest(clock_timestamp() - coalesce(placed_at, created_at), interval '2 s') / 2, interval '1 min'
           ),
           %b, %b, %b
    FROM orders WHERE order_id = %b
    ON CONFLICT (order_id) DO UPDATE
    SET due_at = excluded.due_at, event_id = excluded.event_id, body = excluded.body,
        traceparent = excluded.traceparent
    WHERE retries.event_id <> excluded.event_id
"""

# What follows `due`, the retries to send.
# Not clock_timestamp(): it is volatile, so no index could be searched by the condition.
# The order's row is locked before its outbox row gets an id, as in every statement that writes events of this key. The
# message goes straight to the queue, by the default exchange: it is no news for other subscribers.
#
# A retry whose order another session has locked is put off; left as it is, it would be due first in each batch. A retry
# of an order that was purged is dropped.
SEND: LiteralString = f"""
    unlocked AS MATERIALIZED (
        SELECT order_id FROM orders WHERE order_id = ANY(ARRAY(SELECT order_id FROM due))
        FOR NO KEY UPDATE SKIP LOCKED
    ), locked AS MATERIALIZED (
        SELECT order_id FROM orders
        WHERE order_id = ANY(ARRAY(SELECT order_id FROM due EXCEPT SELECT order_id FROM unlocked))
    ), put_off AS (
        UPDATE retries SET due_at = statement_timestamp() + make_interval(secs => %b)
        WHERE order_id = ANY(ARRAY(SELECT order_id FROM locked))
    ), taken AS (
        DELETE FROM retries
        WHERE order_id = ANY(ARRAY(SELECT order_id FROM due EXCEPT SELECT order_id FROM locked))
        RETURNING order_id, event_id, body, traceparent
    ), event AS (
        SELECT event_id, order_id, '' AS exchange, %b::text AS routing_key, true AS required, body, traceparent
        FROM taken JOIN unlocked USING (order_id)
    ), appended AS (
        {outbox_table.APPEND}
    )
    SELECT (SELECT count(*) FROM unlocked), ARRAY(SELECT order_id FROM locked)
"""

SEND_DUE: LiteralString = f"""
    WITH due AS MATERIALIZED (
        SELECT order_id FROM retries
        WHERE due_at > statement_timestamp() - make_interval(secs => %b) AND due_at <= statement_timestamp()
        ORDER BY due_at LIMIT %b FOR UPDATE SKIP LOCKED
    ), {SEND}
"""

# Of some pages of the table, and by no index: with `+` the time is no condition of one.
SEND_OVERDUE: LiteralString = f"""
    WITH due AS MATERIALIZED (
        SELECT order_id FROM retries
        WHERE ctid >= format('(%%s,0)', %b::bigint)::tid AND ctid < format('(%%s,0)', %b::bigint)::tid
          AND due_at + make_interval(secs => %b) <= statement_timestamp()
        LIMIT %b FOR UPDATE SKIP LOCKED
    ), {SEND}
"""
PUT_OFF_SECONDS = 1.0

COUNT: LiteralString = """
    SELECT count(*), count(*) FILTER (WHERE due_at + make_interval(secs => %b) <= statement_timestamp()),
           pg_relation_size('retries') / current_setting('block_size')::integer
    FROM retries WHERE ctid >= format('(%%s,0)', %b::bigint)::tid AND ctid < format('(%%s,0)', %b::bigint)::tid
"""

# The orders that have failed again and again since long. The inner LIMIT bounds the cost, however many wait.
GOING_ROUND: LiteralString = """
    SELECT o.order_id, o.failures, o.placed_at, r.due_at, count(*) OVER () AS orders
    FROM (SELECT order_id, due_at FROM retries ORDER BY due_at LIMIT 1000) AS r JOIN orders o USING (order_id)
    WHERE o.failures >= %b AND o.placed_at < clock_timestamp() - make_interval(secs => %b)
    ORDER BY o.placed_at LIMIT 1
"""


class GoingRound(NamedTuple):
    """The order that has gone from retry to retry for longest, and how many orders do so in all."""

    order_id: UUID
    failures: int
    placed_at: datetime
    due_at: datetime
    orders: int


class Slice(NamedTuple):
    """The retries in some pages of the table."""

    rows: int  # due or not
    overdue: int
    pages: int  # that the whole table has


class Due(NamedTuple):
    """The retries that were due: how many were sent, and the orders whose rows another session has locked."""

    sent: int
    locked: list[UUID]


async def send_due(conn: AsyncConnection, queue: str, rows: int, *, within_seconds: float) -> Due:
    """Move at most `rows` retries that are due to the outbox, for `queue`.

    Only retries that came due in the last `within_seconds` are looked for. Those of locked orders are put off by
    PUT_OFF_SECONDS.
    """
    cursor = await conn.execute(SEND_DUE, [within_seconds, rows, PUT_OFF_SECONDS, queue], prepare=True)
    row = await cursor.fetchone()
    assert row is not None
    return Due(*row)


async def send_overdue(
    conn: AsyncConnection, queue: str, rows: int, *, after_seconds: float, page: int, pages: int
) -> Due:
    """Move at most `rows` retries that have been due for `after_seconds`, of `pages` pages of the table from `page` on.

    Those of locked orders are put off, as by `send_due`.
    """
    asked = [page, page + pages, after_seconds, rows, PUT_OFF_SECONDS, queue]
    row = await (await conn.execute(SEND_OVERDUE, asked, prepare=True)).fetchone()
    assert row is not None
    return Due(*row)


async def count(conn: AsyncConnection, *, after_seconds: float, page: int, pages: int) -> Slice:
    """Count the retries in `pages` pages of the table from `page` on, and those due for `after_seconds`."""
    row = await (await conn.execute(COUNT, [after_seconds, page, page + pages], prepare=True)).fetchone()
    assert row is not None
    return Slice(*row)


async def going_round(conn: AsyncConnection, failures: int, seconds: float) -> GoingRound | None:
    """Return the oldest order that waits for a retry after `failures` failures or more, and was placed `seconds` ago.

    Only the 1,000 retries that are due next are looked at; None: no such order is among them.
    """
    row = await (await conn.execute(GOING_ROUND, [failures, seconds])).fetchone()
    return GoingRound(*row) if row else None
