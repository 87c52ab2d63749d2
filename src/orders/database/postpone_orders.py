"""Have orders wait for their retry: the failure, and the message to send again, are one transaction.

They wait in a table: not in a worker, whose prefetch they would fill, nor in RabbitMQ, where each delay needs a queue
of its own and every message is written twice more, nor in the outbox, whose order by key they would hold up. When its
time has come, the message goes through the outbox to the work queue like any other, so whoever has room takes it, and a
worker that dies with it in hand loses nothing.
"""

from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from orders.database.claim_orders import Claimed, Wanted

# `worker` is set to 0 here, and never by a claim: an earlier run of the same batch is not counted again.
POSTPONE: LiteralString = """
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
    INSERT INTO retries (order_id, due_at, event_id, body, traceparent)
    SELECT order_id, clock_timestamp() + make_interval(secs => seconds), event_id, body, traceparent
    FROM postponed
    ON CONFLICT (order_id) DO UPDATE SET due_at = excluded.due_at
"""

# Not clock_timestamp(): it is volatile, and so no condition that an index could be searched by.
# The order's row is locked before its outbox row gets an id, as by everyone who writes events of this key. Straight to
# the queue, by the default exchange: it is no news for anybody else.
SEND_DUE: LiteralString = """
    WITH due AS (
        DELETE FROM retries WHERE order_id = ANY(ARRAY(
            SELECT order_id FROM retries
            WHERE due_at > statement_timestamp() - make_interval(secs => %b) AND due_at <= statement_timestamp()
            ORDER BY due_at LIMIT %b FOR UPDATE SKIP LOCKED
        ))
        RETURNING order_id, event_id, body, traceparent
    ), locked AS (
        SELECT order_id FROM orders WHERE order_id IN (SELECT order_id FROM due) ORDER BY order_id FOR UPDATE
    )
    INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, headers, body)
    SELECT event_id, order_id::text, '', %b, true, 'application/cloudevents+json',
           jsonb_build_object('traceparent', traceparent), body
    FROM due JOIN locked USING (order_id)
"""

COUNT: LiteralString = "SELECT count(*) FROM retries"

COLUMNS_ARE_THERE: LiteralString = "SELECT order_id, due_at, event_id, body, traceparent FROM retries LIMIT 0"


class Postpone(msgspec.Struct, frozen=True):
    """An order whose handler has failed under this claim, to be sent again in so many seconds."""

    claimed: Claimed
    wanted: Wanted
    seconds: float
    body: bytes
    traceparent: str


async def postpone_orders(conn: AsyncConnection, batch: Sequence[Postpone]) -> list[None]:
    """Count the failures and write the retries; one that is no longer ours, or was written before, is left alone."""
    rows: list[tuple[UUID, int, UUID, float, bytes, str]] = [
        (p.wanted.order_id, p.claimed.order.attempts, p.wanted.event_id, p.seconds, p.body, p.traceparent)
        for p in batch
    ]
    await conn.execute(POSTPONE, [list(column) for column in zip(*rows, strict=True)], prepare=True)
    return [None] * len(batch)


async def send_due(conn: AsyncConnection, queue: str, rows: int, *, within_seconds: float) -> int:
    """Move at most `rows` retries that are due, by at most so much, to the outbox; return how many there were."""
    cursor = await conn.execute(SEND_DUE, [within_seconds, rows, queue], prepare=True)
    return cursor.rowcount


async def count(conn: AsyncConnection) -> int:
    """Return how many orders wait for their retry."""
    cursor = await conn.execute(COUNT)
    row = await cursor.fetchone()
    return row[0] if row else 0
