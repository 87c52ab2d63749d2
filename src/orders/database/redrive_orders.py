"""Redrive failed orders: `failed -> placed`, the event for the workers, and the audit row, in one statement."""

from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from orders.database import dead_letters_table, orders_table, outbox_table
from orders.model import events
from orders.model.events import data_of
from orders.model.order import Order
from orders.model.traceparent import continue_trace

FAILED: LiteralString = f"""
    SELECT {orders_table.COLUMNS}, d.id
    FROM dead_letters d JOIN orders o ON o.order_id = d.order_id
    WHERE d.id = ANY(%b) AND d.state = 'dead' AND o.status = 'failed'
"""

# Only from the version that FAILED found: of two redrives of an order, the second finds another version. An order that
# another session has locked, or its letter, is skipped.
REDRIVE: LiteralString = f"""
    WITH every AS (
        SELECT * FROM unnest(
            %b::bigint[], %b::uuid[], %b::integer[], %b::uuid[], %b::bytea[], %b::text[]
        ) AS t (letter_id, order_id, version, event_id, body, traceparent)
    ), asked AS MATERIALIZED (
        SELECT every.* FROM every JOIN orders o USING (order_id) JOIN dead_letters d ON d.id = every.letter_id
        WHERE o.status = 'failed' AND o.version = every.version
        FOR NO KEY UPDATE OF o, d SKIP LOCKED
    ), redriven AS (
        UPDATE orders o
        SET status = 'placed', version = o.version + 1, failures = 0, failure_reason = NULL, finished_at = NULL,
            event_id = asked.event_id, redrives = o.redrives + 1, placed_at = clock_timestamp(),
            updated_at = clock_timestamp(),
            attempt_log = log_attempt(o.attempt_log, o.attempts, NULL, 'redriven', %b, NULL, nullif(%b, ''), NULL)
        FROM asked
        WHERE o.order_id = asked.order_id AND o.status = 'failed' AND o.version = asked.version
        RETURNING o.order_id
    ), event AS (
        SELECT event_id, order_id, 'orders' AS exchange, 'order.redriven' AS routing_key, true AS required, body,
               traceparent
        FROM redriven JOIN asked USING (order_id)
    ), appended AS (
        {outbox_table.APPEND}
    ), settled AS (
        UPDATE dead_letters d
        SET state = 'redriven', settled_at = clock_timestamp()
        FROM redriven JOIN asked USING (order_id)
        WHERE d.id = asked.letter_id
    ), audited AS (
        INSERT INTO dead_letter_audit ({dead_letters_table.AUDIT_COLUMNS}, event_id)
        SELECT %b, 'redrive', letter_id, order_id, %b, event_id
        FROM redriven JOIN asked USING (order_id)
    )
    SELECT letter_id FROM redriven JOIN asked USING (order_id)
"""


class Redrive(msgspec.Struct, frozen=True):
    """The operator who redrives, and why; both go to the audit."""

    actor: str
    reason: str = ""


async def redrive_orders(conn: AsyncConnection, redrive: Redrive, letter_ids: Sequence[int]) -> list[int]:
    """Redrive the orders of these dead letters; return the ids of the letters whose order was failed until now.

    A letter whose order another session has locked is left out; `still_failed` tells it from the others.
    """
    cursor = await conn.execute(FAILED, [list(letter_ids)])
    rows = [_row(orders_table.order_of(row), row[-1]) for row in await cursor.fetchall()]
    if not rows:
        return []
    columns = [list(column) for column in zip(*rows, strict=True)]
    cursor = await conn.execute(REDRIVE, [*columns, redrive.actor, redrive.reason, redrive.actor, redrive.reason])
    return [row[0] for row in await cursor.fetchall()]


async def still_failed(conn: AsyncConnection, letter_ids: Sequence[int]) -> list[int]:
    """Return those of these dead letters whose order is failed, and can be redriven."""
    cursor = await conn.execute(FAILED, [list(letter_ids)])
    return [row[-1] for row in await cursor.fetchall()]


def _row(order: Order, letter_id: int) -> tuple[int, UUID, int, UUID, bytes, str]:
    data = data_of(order, status="placed", version=order.version + 1)
    event = events.event_of("order.redriven", data, continue_trace(None))
    return letter_id, order.order_id, order.version, event.event_id, event.body, event.traceparent
