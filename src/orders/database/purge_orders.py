"""Purge old orders: delete them, or only anonymise them. Each batch is a transaction."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import LiteralString
from uuid import UUID

from psycopg import AsyncConnection

from orders.database import idempotency_keys_table, orders_table
from orders.model.ids import lowest_id

BATCH_ROWS = 1000

# Up the primary key, which is in the order of time, from the end of the last batch: deleted rows are not scanned again.
# An order that another transaction has locked is left for the next purge.
ERASE: LiteralString = """
    WITH scanned AS MATERIALIZED (
        SELECT order_id FROM orders
        WHERE order_id > %(above)s AND order_id < %(below)s AND finished_at < %(before)s
        ORDER BY order_id LIMIT %(rows)s
        FOR UPDATE SKIP LOCKED
    ), erased AS (
        DELETE FROM orders WHERE order_id IN (SELECT order_id FROM scanned)
    )
    SELECT order_id FROM scanned ORDER BY order_id
"""
ANONYMISE: LiteralString = f"""
    WITH scanned AS MATERIALIZED (
        SELECT order_id FROM orders
        WHERE order_id > %(above)s AND order_id < %(below)s AND finished_at < %(before)s AND customer_id <> 'erased'
        ORDER BY order_id LIMIT %(rows)s
        FOR NO KEY UPDATE SKIP LOCKED
    ), anonymised AS (
        UPDATE orders SET {orders_table.ANONYMOUS}, updated_at = clock_timestamp()
        WHERE order_id IN (SELECT order_id FROM scanned)
    )
    SELECT order_id FROM scanned ORDER BY order_id
"""


async def purge_orders(conn: AsyncConnection, older_than: timedelta, *, anonymise: bool) -> AsyncIterator[int]:
    """Purge the orders that ended before `older_than` ago, and the keys of that age; yield the rows of each batch.

    The keys' first answers hold customers' names, too. So do events, for which the relay has a retention of its own.
    """
    before = datetime.now(UTC) - older_than
    scan = {
        "above": UUID(int=0),
        "below": lowest_id(before),
        "before": before,
        "rows": BATCH_ROWS,
    }
    while True:
        cursor = await conn.execute(ANONYMISE if anonymise else ERASE, scan)
        order_ids = [row[0] for row in await cursor.fetchall()]
        yield len(order_ids)
        if len(order_ids) < BATCH_ROWS:
            break
        scan["above"] = order_ids[-1]
    mark = datetime(1970, 1, 1, tzinfo=UTC)
    while True:
        expired = await idempotency_keys_table.expire(conn, mark, before, older_than, BATCH_ROWS)
        if expired.rows < BATCH_ROWS:
            return
        mark = expired.mark or mark
