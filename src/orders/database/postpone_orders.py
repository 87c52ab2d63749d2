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

from orders.database import retries_table
from orders.database.claim_orders import Claimed
from orders.model.work_message import WorkMessage

# `worker` is set to 0 here, and never by a claim: an earlier run of the same batch is not counted again.
POSTPONE: LiteralString = f"""
    WITH asked AS (
        SELECT * FROM unnest(
            %b::uuid[], %b::integer[], %b::uuid[], %b::float8[], %b::bytea[], %b::text[]
        ) AS t (order_id, attempts, event_id, seconds, body, traceparent)
        ORDER BY order_id
    ), postponed AS (
        UPDATE orders o
        SET worker = 0, failures = o.failures + 1, updated_at = clock_timestamp()
        FROM asked
        WHERE o.order_id = asked.order_id AND o.status = 'processing' AND o.attempts = asked.attempts
          AND o.worker <> 0
        RETURNING o.order_id, asked.event_id, asked.seconds, asked.body, asked.traceparent
    )
    {retries_table.ADD}
"""


class Postpone(msgspec.Struct, frozen=True):
    """An order whose handler failed under this claim; its message is sent again after `seconds`."""

    claimed: Claimed
    message: WorkMessage
    seconds: float
    body: bytes
    traceparent: str


async def postpone_orders(conn: AsyncConnection, batch: Sequence[Postpone]) -> list[None]:
    """Count the failures and write the retries; return one None for each, as a batch has to.

    An order that this claim no longer owns, or that an earlier run postponed, is left alone.
    """
    rows: list[tuple[UUID, int, UUID, float, bytes, str]] = [
        (p.message.order_id, p.claimed.order.attempts, p.message.event_id, p.seconds, p.body, p.traceparent)
        for p in batch
    ]
    await conn.execute(POSTPONE, [list(column) for column in zip(*rows, strict=True)], prepare=True)
    return [None] * len(batch)
