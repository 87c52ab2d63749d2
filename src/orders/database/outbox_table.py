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

WINDOW_ROWS = 50_000

# In a window above the relay's mark and the caller's place, or every look would step over the rows that were sent since
# the last vacuum, or since a transaction that stays open began. Of the rows that wait for their route the head is the
# oldest. A blocked key waits for an operator, and delays no other key.
OLDEST: LiteralString = """
    WITH here AS MATERIALIZED (
        SELECT greatest(mark, %(place)b::bigint) AS place,
               coalesce(pg_sequence_last_value('outbox_id_seq'), 0) AS last_id
        FROM outbox_mark
    ), pending AS MATERIALIZED (
        SELECT id, created_at FROM outbox
        WHERE state = 'pending' AND id > (SELECT place FROM here) AND id <= (SELECT place FROM here) + %(rows)b
        ORDER BY id LIMIT 1
    )
    SELECT here.place, here.last_id, pending.id, extract(epoch FROM clock_timestamp() - least(
        pending.created_at,
        (SELECT o.created_at FROM outbox o WHERE o.id = (
            SELECT head FROM outbox_waiting WHERE NOT blocked AND exchange = 'orders' AND routing_key = 'order.placed'
            ORDER BY head LIMIT 1
        ))
    ))::float8
    FROM here LEFT JOIN pending ON true
"""


async def add_partitions(conn: AsyncConnection) -> None:
    """Create the partitions for the next ids.

    The relay creates them ahead; a writer has to only if every relay has been away until they were used up.
    """
    await conn.execute(ADD_PARTITIONS)


class OldestEvent:
    """Looks now and then for the oldest event that is not sent, from where it was found last.

    An event that is committed later than a look after the one that followed its id is not found.
    """

    def __init__(self) -> None:
        self._place = self._last_id = 0

    async def seconds(self, conn: AsyncConnection) -> float:
        """Return its age in seconds by the database's clock; 0 if there is none."""
        while True:
            asked = {"place": self._place, "rows": WINDOW_ROWS}
            row = await (await conn.execute(OLDEST, asked, prepare=True)).fetchone()
            assert row is not None
            place, last_id, pending, seconds = row
            if pending is None and place + WINDOW_ROWS < last_id:
                self._place = place + WINDOW_ROWS
                continue
            # What was drawn since the last look may not be committed yet. A lower id than the last: it was set back.
            self._place = pending - 1 if pending is not None else self._last_id
            self._last_id = last_id
            if self._place > last_id:
                self._place = 0
            return seconds or 0.0
