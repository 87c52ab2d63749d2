"""Orders and outbox rows as they would be found, written by hand: healthy ones, and what a test makes of them."""

import uuid
from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from orders.model.ids import uuid7

ORDER: LiteralString = """
    INSERT INTO orders (order_id, status, version, worker, failure_reason, created_at, updated_at, finished_at)
    VALUES (%(order_id)s, %(status)s, %(version)s, %(worker)s,
            CASE WHEN %(status)s = 'failed' THEN 'a reason' END, now() - interval '1 hour', now() - interval '1 hour',
            CASE WHEN %(status)s IN ('done', 'failed', 'cancelled') THEN now() - interval '1 hour' END)
"""

ROW: LiteralString = """
    INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, headers, body, state,
                        created_at, settled_at)
    VALUES (%(event_id)s, %(key)s, 'orders', %(type)s, %(required)s, 'application/cloudevents+json', '{}', %(body)s,
            %(state)s, now() - interval '1 hour',
            CASE WHEN %(state)s IN ('sent', 'unrouted', 'skipped') THEN now() - interval '1 hour' END)
    RETURNING id
"""

Told = tuple[str, int, str]  # the event's type, its version, its row's state

HEALTHY: Sequence[Told] = (("order.placed", 1, "sent"), ("order.done", 3, "unrouted"))


async def plant(
    conn: AsyncConnection,
    told: Sequence[Told] = HEALTHY,
    *,
    status: str = "done",
    version: int = 3,
    worker: int | None = None,
    order_id: UUID | None = None,
) -> UUID:
    """Write an order and its outbox rows, each row in a transaction of its own; return its id."""
    order_id = order_id or uuid7()
    await conn.execute(ORDER, {"order_id": order_id, "status": status, "version": version, "worker": worker})
    for each in told:
        await tell(conn, order_id, *each)
    return order_id


async def tell(conn: AsyncConnection, order_id: UUID, type_: str, version: int, state: str) -> int:
    """Write an outbox row of an order; return its id."""
    event_id = uuid.uuid4()
    data = {"order_id": str(order_id), "status": type_.removeprefix("order."), "version": version}
    body = msgspec.json.encode({"id": str(event_id), "type": type_, "subject": str(order_id), "data": data})
    required = type_ in {"order.placed", "order.redriven"}
    cursor = await conn.execute(
        ROW,
        {"event_id": event_id, "key": str(order_id), "type": type_, "required": required, "body": body,
         "state": state},
    )  # fmt: skip
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])
