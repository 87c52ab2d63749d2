"""The tables `stragglers` and `sweep`: orders that have not ended long after their message was sent.

Every order that has not ended has an outbox row above the sweep's place, a retry that waits, or a row here. A standby
that is promoted without the newest commits has the place and this list from the same moment as the orders. So whatever
it lacks, the orders that nothing carries are found, without a look at those that have ended.
"""

from collections.abc import Sequence
from typing import LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

from orders.database import attempt_log, worker_lock
from orders.model.order import Status

COLUMNS: LiteralString = "order_id, row_id, due_at"

COLUMNS_ARE_THERE: LiteralString = f"""
    SELECT {COLUMNS}, brought_back, walked, system_id, timeline, changed_at FROM stragglers, sweep LIMIT 0
"""

# Of the file that is written next: the control file learns of a promotion only with the checkpoint that follows it.
HISTORY: LiteralString = """
    SELECT system_identifier, ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint
    FROM pg_control_system()
"""

NOTE_HISTORY: LiteralString = """
    UPDATE sweep
    SET system_id = %b, timeline = %b, changed_at = CASE WHEN timeline IS NOT NULL THEN clock_timestamp() END
    WHERE (system_id, timeline) IS DISTINCT FROM (%b::bigint, %b::bigint)
"""

LOOK: LiteralString = """
    SELECT s.walked, m.mark, coalesce(s.changed_at > statement_timestamp() - make_interval(secs => %b), false),
           EXISTS (SELECT FROM stragglers)
    FROM sweep s CROSS JOIN outbox_mark m
"""

# Go on from `walked` over rows that were settled long enough ago; up to the mark, below which no row comes later. Of
# the orders that these rows ask a worker for, those that have not ended become stragglers; a retry that waits writes an
# outbox row of its own later. A row that an operator skipped is left to him.
#
# A filter on the key stands in front of the cast: others may write to this table too.
WALK: LiteralString = f"""
    WITH here AS MATERIALIZED (
        SELECT walked FROM sweep WHERE walked = %(walked)b FOR UPDATE SKIP LOCKED
    ), seen AS MATERIALIZED (
        SELECT id, key, coalesce(settled_at, created_at) AS at,
               required AND state <> 'skipped' AND (
                   exchange = 'orders' AND routing_key IN ('order.placed', 'order.redriven')
                   OR exchange = '' AND routing_key = %(queue)b
               ) AND key ~ '^[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}$' AS asks_for_work
        FROM outbox WHERE id > %(walked)b AND id <= %(mark)b AND EXISTS (SELECT FROM here)
        ORDER BY id LIMIT %(rows)b
    ), reached AS MATERIALIZED (
        SELECT coalesce(
            (SELECT min(id) - 1 FROM seen WHERE at > statement_timestamp() - make_interval(secs => %(age)b)),
            CASE WHEN (SELECT count(*) FROM seen) < %(rows)b THEN %(mark)b ELSE (SELECT max(id) FROM seen) END
        ) AS id
    ), asked AS MATERIALIZED (
        SELECT key, max(id) AS row_id FROM seen WHERE asks_for_work AND id <= (SELECT id FROM reached) GROUP BY key
    ), added AS (
        INSERT INTO stragglers ({COLUMNS})
        SELECT o.order_id, asked.row_id, statement_timestamp() + make_interval(secs => %(wait)b)
        FROM asked JOIN orders o ON o.order_id = asked.key::uuid
        WHERE o.status IN ('placed', 'processing') AND NOT EXISTS (SELECT FROM retries r WHERE r.order_id = o.order_id)
        ON CONFLICT (order_id) DO UPDATE SET row_id = excluded.row_id WHERE stragglers.row_id < excluded.row_id
    )
    UPDATE sweep SET walked = reached.id FROM here, reached WHERE reached.id > sweep.walked
    RETURNING reached.id
"""

# This worker has these orders in hand, so it is not their time.
PUT_OFF: LiteralString = """
    UPDATE stragglers SET due_at = greatest(due_at, statement_timestamp() + make_interval(secs => %b))
    WHERE order_id = ANY(%b)
"""

# Claims that are this worker's, and not of an order in its hands: their end is lost. A claim that was made since the
# list of orders in hand is younger.
LET_GO: LiteralString = """
    WITH lost AS MATERIALIZED (
        SELECT o.order_id FROM stragglers s JOIN orders o USING (order_id)
        WHERE o.status = 'processing' AND o.worker = %b AND o.order_id <> ALL(%b::uuid[])
          AND o.updated_at < statement_timestamp() - make_interval(secs => %b)
        FOR NO KEY UPDATE OF o SKIP LOCKED
    )
    UPDATE orders o
    SET worker = 0, updated_at = clock_timestamp(),
        attempt_log = log_attempt(o.attempt_log, o.attempts, o.updated_at, 'end lost', %b, NULL, NULL, NULL)
    FROM lost WHERE o.order_id = lost.order_id
"""

# Judge the stragglers that are due. One whose order has ended, is gone or waits for its retry is deleted, and so is one
# whose message an operator skipped. The others are due again later: those that nothing carries after a pause that
# doubles, since each of them is sent again in this transaction.
JUDGE: LiteralString = f"""
    WITH alive AS MATERIALIZED (
        {worker_lock.ALIVE}
    ), due AS MATERIALIZED (
        SELECT order_id, row_id, brought_back FROM stragglers
        WHERE due_at <= statement_timestamp() ORDER BY due_at LIMIT %(rows)b FOR UPDATE SKIP LOCKED
    ), judged AS MATERIALIZED (
        SELECT due.*, o.status, o.version,
               o.status IS NULL OR o.status NOT IN ('placed', 'processing')
                   OR EXISTS (SELECT FROM retries r WHERE r.order_id = due.order_id)
                   OR EXISTS (SELECT FROM outbox b WHERE b.id = due.row_id AND b.state = 'skipped') AS is_settled,
               (o.status = 'placed' OR o.worker NOT IN (SELECT worker FROM alive))
                   AND NOT EXISTS (SELECT FROM outbox_parked p WHERE p.key = due.order_id::text) AS is_stranded
        FROM due LEFT JOIN orders o USING (order_id)
    ), settled AS (
        DELETE FROM stragglers s USING judged WHERE s.order_id = judged.order_id AND is_settled
    ), put_off AS (
        UPDATE stragglers s
        SET brought_back = s.brought_back + is_stranded::integer,
            due_at = statement_timestamp() + make_interval(secs => CASE
                WHEN is_stranded THEN least(%(pause)b * 2 ^ least(s.brought_back, 10), %(longest)b) ELSE %(wait)b
            END)
        FROM judged WHERE s.order_id = judged.order_id AND NOT is_settled
    )
    SELECT order_id, status, version, row_id FROM judged WHERE is_stranded AND NOT is_settled ORDER BY row_id
"""

# The orders that no worker has had in hand for long, though they are due; and those that came back in vain.
LEFT: LiteralString = """
    SELECT count(*), min(order_id::text), coalesce(max(brought_back), 0) FROM (
        SELECT o.order_id, s.brought_back FROM stragglers s JOIN orders o USING (order_id)
        WHERE o.status IN ('placed', 'processing')
          AND (s.brought_back > 1 OR s.due_at < statement_timestamp() - make_interval(secs => %b))
        LIMIT 1000
    ) AS found
"""

CHANGED: LiteralString = """
    SELECT timeline, to_char(changed_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') FROM sweep
    WHERE changed_at > statement_timestamp() - make_interval(secs => %b)
"""


class Place(NamedTuple):
    """How far the sweep has come and may go, whether the history changed lately, and whether there are stragglers."""

    walked: int
    mark: int
    changed_lately: bool
    has_stragglers: bool


class History(NamedTuple):
    """What tells one history of a server from another: both of a dump and of a promotion it is a new one."""

    system_id: int
    timeline: int


class Stranded(NamedTuple):
    """An order that nothing carries, and the outbox row of its newest message."""

    order_id: UUID
    status: Status
    version: int
    row_id: int


class Left(NamedTuple):
    """How many orders are late and in nobody's hands, the first of them, and how often the worst was brought back."""

    orders: int
    first: str | None
    brought_back: int


class Changed(NamedTuple):
    """The server's timeline, and when it was noticed."""

    timeline: int
    at: str


async def history(conn: AsyncConnection) -> History:
    """Return which history the server writes; raises psycopg.Error where it does not tell."""
    row = await (await conn.execute(HISTORY)).fetchone()
    assert row is not None
    return History(*row)


async def note_history(conn: AsyncConnection, now: History) -> bool:
    """Remember the server's history; return whether it is another than the one before."""
    return (await conn.execute(NOTE_HISTORY, [*now, *now])).rowcount > 0


async def look(conn: AsyncConnection, lately_seconds: float) -> Place:
    """Return the place of the sweep."""
    row = await (await conn.execute(LOOK, [lately_seconds], prepare=True)).fetchone()
    assert row is not None
    return Place(*row)


async def walk(
    conn: AsyncConnection, queue: str, place: Place, rows: int, *, age_seconds: float, wait_seconds: float
) -> int | None:
    """Look at the next `rows` outbox rows that are as old; return the new place, or None if it is the same.

    The orders that are late become stragglers, due after `wait_seconds`.
    """
    cursor = await conn.execute(
        WALK,
        {
            "walked": place.walked, "mark": place.mark, "queue": queue, "rows": rows, "age": age_seconds,
            "wait": wait_seconds,
        },
        prepare=True,
    )  # fmt: skip
    row = await cursor.fetchone()
    return row[0] if row else None


async def keep_in_hand(
    conn: AsyncConnection, worker: int, in_hand: Sequence[UUID], *, wait_seconds: float, age_seconds: float
) -> int:
    """Put off the stragglers that this worker has in hand; let go of its claims on others that are as old.

    Returns how many claims it let go.
    """
    if in_hand:
        await conn.execute(PUT_OFF, [wait_seconds, list(in_hand)], prepare=True)
    lost = await conn.execute(LET_GO, [worker, list(in_hand), age_seconds, attempt_log.own_name()], prepare=True)
    return lost.rowcount


async def judge(
    conn: AsyncConnection, rows: int, *, wait_seconds: float, pause_seconds: float, longest_seconds: float
) -> list[Stranded]:
    """Judge at most `rows` stragglers that are due; return those that nothing carries.

    The caller sends their messages again in the same transaction. The next time is after `pause_seconds`, which double
    up to `longest_seconds`.
    """
    cursor = await conn.execute(
        JUDGE, {"rows": rows, "wait": wait_seconds, "pause": pause_seconds, "longest": longest_seconds}, prepare=True
    )
    return [Stranded(*row) for row in await cursor.fetchall()]


async def left(conn: AsyncConnection, overdue_seconds: float) -> Left:
    """Return the orders that are due for `overdue_seconds`, or were brought back twice and more; at most 1,000."""
    row = await (await conn.execute(LEFT, [overdue_seconds])).fetchone()
    assert row is not None
    return Left(*row)


async def changed(conn: AsyncConnection, within_seconds: float) -> Changed | None:
    """Return the server's timeline if it has changed in the last `within_seconds`."""
    row = await (await conn.execute(CHANGED, [within_seconds])).fetchone()
    return Changed(*row) if row else None
