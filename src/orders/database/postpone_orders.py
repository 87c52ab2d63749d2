"""Postpone orders to a retry: the failure, and the message to send again, are written by one transaction.

Retries wait in a table. In a worker they would fill the prefetch; in RabbitMQ each delay needs a queue, and every
message is written twice more; in the outbox they would block later events of their key. When a retry is due, its
message goes through the outbox to the work queue as any other. A worker with free capacity takes it, and nothing is
lost if that worker dies.
"""

from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from orders.database import attempt_log, claim_orders, retries_table
from orders.database.claim_orders import NO_WORKER, Claimed
from orders.database.row_locks import Busy
from orders.model.storable_text import storable_text
from orders.model.work_message import WorkMessage

# `worker` is set to 0 here, and never by a claim: an earlier run of the same batch is not counted again. Orders whose
# rows another session has locked are skipped.
POSTPONE: LiteralString = f"""
    WITH asked AS (
        SELECT * FROM unnest(
            %b::uuid[], %b::integer[], %b::uuid[], %b::float8[], %b::bytea[], %b::text[], %b::text[], %b::text[]
        ) AS t (order_id, attempts, event_id, seconds, body, traceparent, error, reason)
    ), unlocked AS MATERIALIZED (
        SELECT asked.* FROM orders o JOIN asked USING (order_id)
        WHERE o.status = 'processing' AND o.attempts = asked.attempts AND o.worker <> 0
        FOR NO KEY UPDATE OF o SKIP LOCKED
    ), postponed AS (
        UPDATE orders o
        SET worker = 0, failures = o.failures + 1, updated_at = clock_timestamp(),
            attempt_log = log_attempt(
                o.attempt_log, o.attempts, o.updated_at, 'retry', %b, unlocked.error, unlocked.reason,
                clock_timestamp() + make_interval(secs => unlocked.seconds)
            )
        FROM unlocked
        WHERE o.order_id = unlocked.order_id
        RETURNING o.order_id, unlocked.event_id, unlocked.seconds, unlocked.body, unlocked.traceparent
    )
    {retries_table.ADD}
    RETURNING order_id
"""


class Postpone(msgspec.Struct, frozen=True):
    """An order whose handler failed under this claim; its message is sent again after `seconds`."""

    claimed: Claimed
    message: WorkMessage
    seconds: float
    body: bytes
    traceparent: str
    error: str | None = None  # the class of the handler's error; with the reason, for the attempt log
    reason: str = ""


async def postpone_orders(conn: AsyncConnection, batch: Sequence[Postpone]) -> list[Busy | None]:
    """Count the failures and write the retries; return None for each, or Busy for an order whose row is locked.

    An order that this claim no longer owns, or that an earlier run postponed, is left alone.
    """
    rows: list[tuple[UUID, int, UUID, float, bytes, str, str | None, str]] = [
        (
            p.message.order_id, p.claimed.order.attempts, p.message.event_id, p.seconds, p.body, p.traceparent,
            p.error and storable_text(p.error), storable_text(p.reason),
        )
        for p in batch
    ]  # fmt: skip
    columns = [list(column) for column in zip(*rows, strict=True)]
    cursor = await conn.execute(POSTPONE, [*columns, attempt_log.own_name()], prepare=True)
    postponed = {row[0] for row in await cursor.fetchall()}
    left = [p.claimed for p in batch if p.message.order_id not in postponed]
    standing = await claim_orders.standing(conn, left) if left else {}
    locked = {order_id for order_id, worker in standing.items() if worker != NO_WORKER}
    return [Busy(p.message.order_id) if p.message.order_id in locked else None for p in batch]
