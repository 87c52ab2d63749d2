"""The outbox, from the writer's side: rows are added, and never looked at again.

The relay's side is `relay/outbox_table.py`; the contract between them is `migrations/versions/0002_outbox.py`.
"""

from typing import LiteralString

from psycopg import AsyncConnection

COLUMNS_ARE_THERE: LiteralString = """
    SELECT event_id, key, exchange, routing_key, required, content_type, headers, body FROM outbox LIMIT 0
"""

ADD_PARTITIONS: LiteralString = "SELECT outbox_add_partitions(2)"


async def add_partitions(conn: AsyncConnection) -> None:
    """Make room for the next ids: only when every relay has been away for so long that those made ahead are used up."""
    await conn.execute(ADD_PARTITIONS)
