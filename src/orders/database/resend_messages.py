"""Have the relay send messages of orders again, straight to a queue, and leave an audit row for each."""

from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from orders.database import outbox_table

# The order's row is locked before the new outbox row gets its id, as by everyone who writes events of this key.
LOCK: LiteralString = """
    SELECT o.order_id FROM orders o JOIN unnest(%b::uuid[], %b::integer[]) AS asked (order_id, version)
        USING (order_id)
    WHERE o.version = asked.version AND o.status IN ('placed', 'processing')
    ORDER BY o.order_id FOR NO KEY UPDATE OF o SKIP LOCKED
"""

# By the default exchange, whose routing key is the name of a queue. The bounds spare a look into other partitions.
RESEND: LiteralString = f"""
    WITH event AS (
        SELECT event_id, key::uuid AS order_id, '' AS exchange, %b::text AS routing_key, true AS required, body,
               headers->>'traceparent' AS traceparent
        FROM outbox WHERE id = ANY(%b) AND id >= %b AND id <= %b ORDER BY id
    ), again AS (
        {outbox_table.APPEND}
        RETURNING id, key
    )
    INSERT INTO outbox_audit (actor, command, key, row_id, rows, reason)
    SELECT %b, 'requeue', key, id, 1, %b FROM again ORDER BY id
"""


class LostMessage(msgspec.Struct, frozen=True):
    """A message that the broker lost: its order, as it was seen, and its outbox row."""

    order_id: UUID
    version: int
    row_id: int


async def resend_messages(
    conn: AsyncConnection, queue: str, lost: Sequence[LostMessage], actor: str, reason: str
) -> int:
    """Send these messages to the queue again, in the order of their rows; return how many.

    One of an order that has changed since, has ended, or is locked by another session is left out. Each message gets a
    new outbox row; marking the old one unsent would need the relay's locks instead of a lock on the order's row. The
    event keeps its id, so a consumer that has seen it knows it again. Other subscribers get nothing, since they lost
    nothing.
    """
    async with conn.transaction():
        cursor = await conn.execute(LOCK, [[m.order_id for m in lost], [m.version for m in lost]])
        unchanged = {row[0] for row in await cursor.fetchall()}
        ids = [message.row_id for message in lost if message.order_id in unchanged]
        if not ids:
            return 0
        done = await conn.execute(RESEND, [queue, ids, min(ids), max(ids), actor, reason])
        return done.rowcount
