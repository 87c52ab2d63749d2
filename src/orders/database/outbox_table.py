"""The table `outbox`, from the writer's side: rows are added, and never changed again.

The relay's side is `relay/outbox_table.py`; the contract between them is `migrations/versions/0002_outbox.py`.
"""

from typing import LiteralString

from psycopg import AsyncConnection

COLUMNS: LiteralString = "event_id, key, exchange, routing_key, required, content_type, headers, body"

COLUMNS_ARE_THERE: LiteralString = f"SELECT {COLUMNS} FROM outbox LIMIT 0"

# Adds an outbox row for each row of `event`, as a part of the statement that writes what the event is about. That
# statement has to select `event`: event_id, order_id, exchange, routing_key, required, body, traceparent.
APPEND: LiteralString = f"""
        INSERT INTO outbox ({COLUMNS})
        SELECT event_id, order_id::text, exchange, routing_key, required, 'application/cloudevents+json',
               jsonb_build_object('traceparent', traceparent), body
        FROM event
"""

ADD_PARTITIONS: LiteralString = "SELECT outbox_add_partitions(2)"

# Above the relay's mark, or every look would step over the rows that were sent since the last vacuum. Of the rows that
# wait for their route the head is the oldest. A blocked key waits for an operator, and delays no other key.
OLDEST: LiteralString = """
    SELECT extract(epoch FROM clock_timestamp() - min(created_at))::float8
    FROM (
        (SELECT created_at FROM outbox WHERE state = 'pending' AND id > (SELECT mark FROM outbox_mark)
         ORDER BY id LIMIT 1)
        UNION ALL
        (SELECT o.created_at FROM outbox o WHERE o.id = (
            SELECT head FROM outbox_waiting WHERE NOT blocked AND exchange = 'orders' AND routing_key = 'order.placed'
            ORDER BY head LIMIT 1
        ))
    ) AS unsent
"""


async def add_partitions(conn: AsyncConnection) -> None:
    """Create the partitions for the next ids.

    The relay creates them ahead; a writer has to only if every relay has been away until they were used up.
    """
    await conn.execute(ADD_PARTITIONS)


async def oldest_seconds(conn: AsyncConnection) -> float:
    """Return the age of the oldest event that is not sent, in seconds by the database's clock; 0 if there is none."""
    cursor = await conn.execute(OLDEST, prepare=True)
    row = await cursor.fetchone()
    return (row and row[0]) or 0.0
