"""See orders to their end: a status and its event are written by one transaction, or neither is."""

from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from orders import events
from orders.claim_orders import Claimed
from orders.events import Data, Event, EventType

# Only under the attempt that was claimed: a repeat, or a worker that comes late, changes nothing and tells nothing.
FINISH: LiteralString = """
    WITH asked AS (
        SELECT * FROM unnest(
            %b::uuid[], %b::integer[], %b::text[], %b::text[], %b::uuid[], %b::text[], %b::bytea[], %b::text[]
        ) AS t (order_id, attempts, status, failure_reason, event_id, type, body, traceparent)
        ORDER BY order_id
    ), finished AS (
        UPDATE orders o
        SET status = asked.status, version = o.version + 1, worker = NULL, failure_reason = asked.failure_reason,
            updated_at = clock_timestamp(), finished_at = clock_timestamp()
        FROM asked
        WHERE o.order_id = asked.order_id AND o.status = 'processing' AND o.attempts = asked.attempts
        RETURNING o.order_id
    ), appended AS (
        INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, headers, body)
        SELECT event_id, order_id::text, 'orders', type, false, 'application/cloudevents+json',
               jsonb_build_object('traceparent', traceparent), body
        FROM finished JOIN asked USING (order_id)
    )
    SELECT order_id FROM finished
"""

REASON_CHARACTERS = 500


class Finish(msgspec.Struct, frozen=True):
    """The end of an order under one claim: done, or failed with a reason."""

    claimed: Claimed
    event: Event
    failure_reason: str | None = None

    @property
    def order_id(self) -> UUID:
        """The order's id."""
        return self.claimed.order.order_id


def finish_of(claimed: Claimed, traceparent: str, failure_reason: str | None = None) -> Finish:
    """Make the end of a claimed order and the event that tells of it."""
    order = claimed.order
    # PostgreSQL takes no NUL, and nobody reads a page of traceback in a status.
    reason = failure_reason and (failure_reason.replace("\0", "\N{REPLACEMENT CHARACTER}")[:REASON_CHARACTERS])
    type_: EventType = "order.failed" if reason else "order.done"
    data = Data(
        order_id=order.order_id,
        status="failed" if reason else "done",
        version=order.version + 1,
        customer_id=order.customer_id,
        currency=order.currency,
        total_minor=order.total_minor,
        reference=order.reference,
        failure_reason=reason,
    )
    return Finish(claimed, events.event_of(type_, data, traceparent), reason)


async def finish_orders(conn: AsyncConnection, batch: Sequence[Finish]) -> list[bool]:
    """Write the ends and their events; False for an order that is no longer ours, or was finished by an earlier run."""
    rows = [
        (f.order_id, f.claimed.order.attempts, "failed" if f.failure_reason else "done", f.failure_reason,
         f.event.event_id, f.event.type, f.event.body, f.event.traceparent)
        for f in batch
    ]  # fmt: skip
    cursor = await conn.execute(FINISH, [list(column) for column in zip(*rows, strict=True)], prepare=True)
    finished = {row[0] for row in await cursor.fetchall()}
    return [f.order_id in finished for f in batch]
