"""End orders: the status `done` or `failed` and its event are written by one transaction, or neither is."""

from collections.abc import Sequence
from typing import Literal, LiteralString
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from orders.database import attempt_log, claim_orders, dead_letters_table, outbox_table, pg_arrays
from orders.database.claim_orders import Claimed
from orders.database.pg_arrays import PgArray
from orders.database.row_locks import Busy
from orders.model import events
from orders.model.events import Event, EventType, data_of
from orders.model.order import Status
from orders.model.storable_text import storable_text

# Only under the attempt that was claimed: a repeat, or a worker that comes late, changes nothing and writes no event.
# Each failed order leaves a dead letter, by which an operator can redrive it.
#
# The event's columns come with the updated rows. Joining them to `asked` again would compare each row with the whole
# batch, since the planner expects one row.
ASKED: LiteralString = """
        SELECT * FROM unnest(
            %b::uuid[], %b::bigint[], %b::text[], %b::text[], %b::text[], %b::uuid[], %b::text[], %b::bytea[],
            %b::text[], %b::text[], %b::text[]
        ) AS t (order_id, attempts, status, failure_reason, kind, event_id, type, body, traceparent, error, details)
        ORDER BY order_id
"""
END: LiteralString = """
        UPDATE orders o
        SET status = asked.status, version = o.version + 1, worker = NULL, failure_reason = asked.failure_reason,
            updated_at = clock_timestamp(), finished_at = clock_timestamp(),
            attempt_log = CASE WHEN asked.status = 'failed' OR o.attempt_log IS NOT NULL THEN log_attempt(
                o.attempt_log, o.attempts, o.updated_at, coalesce(asked.kind, asked.status), %b, asked.error,
                asked.details, NULL
            ) END
        FROM asked
        WHERE o.order_id = asked.order_id AND o.status = 'processing' AND o.attempts = asked.attempts
        RETURNING o.order_id, coalesce(o.event_id, o.order_id) AS cause,
                  extract(epoch FROM o.finished_at - coalesce(o.placed_at, o.created_at))::float8 AS seconds,
                  asked.status, asked.details, asked.kind, asked.event_id, asked.type, asked.body,
                  asked.traceparent
"""
EVENT: LiteralString = """
        SELECT event_id, order_id, 'orders' AS exchange, type AS routing_key, false AS required, body, traceparent
        FROM finished
"""
LETTER: LiteralString = f"""
        INSERT INTO dead_letters ({dead_letters_table.COLUMNS})
        SELECT uuid_send(cause), order_id, cause, kind, details FROM finished WHERE status = 'failed'
        ON CONFLICT DO NOTHING
"""

FINISH: LiteralString = f"""
    WITH asked AS ({ASKED}), finished AS ({END}), event AS ({EVENT}), appended AS ({outbox_table.APPEND}),
         died AS ({LETTER})
    SELECT order_id, seconds FROM finished
"""

# The same, without the orders whose rows another session has locked.
FINISH_SKIPPING: LiteralString = f"""
    WITH every AS ({ASKED}), asked AS MATERIALIZED (
        SELECT every.* FROM orders o JOIN every USING (order_id)
        WHERE o.status = 'processing' AND o.attempts = every.attempts
        FOR NO KEY UPDATE OF o SKIP LOCKED
    ), finished AS ({END}), event AS ({EVENT}), appended AS ({outbox_table.APPEND}), died AS ({LETTER})
    SELECT order_id, seconds FROM finished
"""

FailureKind = Literal["refused", "exhausted"]


class Finish(msgspec.Struct, frozen=True):
    """The end of an order under one claim: done, or failed with a reason."""

    claimed: Claimed
    event: Event
    failure_reason: str | None = None
    kind: FailureKind | None = None
    error: str | None = None  # the class of the handler's error
    details: str | None = None  # the reason for operators, in the dead letter and the attempt log

    @property
    def order_id(self) -> UUID:
        """The order's id."""
        return self.claimed.order.order_id


class Finished(msgspec.Struct, frozen=True):
    """This run ended the order, `seconds` after it was placed (or redriven), by the database's clock."""

    status: Status
    seconds: float


def finish_of(
    claimed: Claimed,
    traceparent: str,
    failure_reason: str | None = None,
    kind: FailureKind | None = None,
    error: str | None = None,
    details: str | None = None,
) -> Finish:
    """Make the end of a claimed order, and its event: `order.failed` with a `failure_reason`, else `order.done`.

    `error` is the class of the handler's error, for the attempt log. `details` is the reason for operators; None: it is
    the same.
    """
    reason = None if failure_reason is None else storable_text(failure_reason)
    type_: EventType = "order.done" if reason is None else "order.failed"
    data = data_of(
        claimed.order, status="done" if reason is None else "failed", version=claimed.order.version + 1, reason=reason
    )
    error = None if error is None else storable_text(error)
    details = reason if details is None else storable_text(details)
    return Finish(claimed, events.event_of(type_, data, traceparent), reason, kind, error, details)


async def finish_orders(
    conn: AsyncConnection, batch: Sequence[Finish], *, skip_locked: bool = True
) -> list[Finished | Busy | None]:
    """Write the ends and their events; return the outcomes in the batch's order.

    None stands for an order that this claim no longer owns, or that an earlier run of the batch ended. With
    `skip_locked` Busy stands for an order whose row is locked; without, which costs less, the statement waits for the
    row, or raises psycopg.errors.LockNotAvailable at the session's lock_timeout and ends no order.
    """
    cursor = await conn.execute(FINISH_SKIPPING if skip_locked else FINISH, parameters_of(batch), prepare=True)
    seconds = {row[0]: row[1] for row in await cursor.fetchall()}
    left = [f.claimed for f in batch if f.order_id not in seconds] if skip_locked else []
    locked = await claim_orders.standing(conn, left) if left else {}
    return [
        Finished("failed" if f.failure_reason else "done", seconds[f.order_id])
        if f.order_id in seconds
        else Busy(f.order_id)
        if f.order_id in locked
        else None
        for f in batch
    ]


def parameters_of(batch: Sequence[Finish]) -> list[PgArray | str]:
    """Return the parameters of FINISH: an array for each column of `asked`, in its order, and the worker's name."""
    return [
        pg_arrays.uuids([f.order_id for f in batch]),
        pg_arrays.bigints([f.claimed.order.attempts for f in batch]),
        pg_arrays.texts(["failed" if f.failure_reason else "done" for f in batch]),
        pg_arrays.texts([f.failure_reason for f in batch]),
        pg_arrays.texts([f.kind for f in batch]),
        pg_arrays.uuids([f.event.event_id for f in batch]),
        pg_arrays.texts([f.event.type for f in batch]),
        pg_arrays.blobs([f.event.body for f in batch]),
        pg_arrays.texts([f.event.traceparent for f in batch]),
        pg_arrays.texts([f.error for f in batch]),
        pg_arrays.texts([f.details for f in batch]),
        attempt_log.own_name(),
    ]
