"""The table `inbox`: lets a subscriber act once for each event, by storing the event's id with the effect.

The ids are kept for some days, and then dropped by the partition. An event that is older cannot be told from one that
was seen, and is refused: a second effect would be worse than a question to an operator.
"""

from typing import LiteralString
from uuid import UUID

import psycopg
from psycopg import AsyncConnection

from orders.model.errors import OrdersError

RECORD: LiteralString = """
    INSERT INTO inbox (event_id, consumer) VALUES (%b, %b) ON CONFLICT DO NOTHING RETURNING event_id
"""

KEEP: LiteralString = "SELECT inbox_keep(%b::integer)"

COLUMNS_ARE_THERE: LiteralString = "SELECT event_id, consumer, at FROM inbox LIMIT 0"


class OutsideRetention(OrdersError):
    """This event is older than the inbox remembers, or its id tells no time: nobody knows whether it was seen."""


async def is_first(conn: AsyncConnection, consumer: str, event_id: UUID) -> bool:
    """Record, in the caller's transaction, that a consumer has seen an event; return False if it had seen it before.

    A second transaction with the same event waits for the end of the first. Raises OutsideRetention if the id is no
    UUIDv7, or older than the inbox keeps.
    """
    if event_id.version != 7:
        raise OutsideRetention(f"{event_id} is no UUIDv7")
    try:
        async with conn.transaction():  # a savepoint: the caller may want to go on after a refusal
            cursor = await conn.execute(RECORD, [event_id, consumer], prepare=True)
            return await cursor.fetchone() is not None
    except psycopg.errors.CheckViolation as error:
        if error.diag.constraint_name:
            raise
        raise OutsideRetention(f"the inbox has no room for {event_id}: too old, or from the future") from None


async def keep(conn: AsyncConnection, days: int) -> UUID:
    """Create the partitions of the next days, and drop those older than `days` days; return the oldest id that fits."""
    cursor = await conn.execute(KEEP, [days])
    row = await cursor.fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]
