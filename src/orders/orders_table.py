"""Every statement that reads an order, or changes nothing but an order."""

from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from orders.errors import OrderNotFound
from orders.order import Order

COLUMNS_ARE_THERE: LiteralString = """
    SELECT order_id, client, status, version, attempts, failures, worker, customer_id, currency, lines, total_minor,
           reference, failure_reason, created_at, updated_at, finished_at,
           event_id, redrives, placed_at
    FROM orders LIMIT 0
"""

READ_MANY: LiteralString = """
    SELECT order_id, status, version, customer_id, currency, lines::text, total_minor, reference, attempts,
           failure_reason, created_at, updated_at, finished_at
    FROM orders WHERE order_id = ANY(%b)
"""


async def read_many(conn: AsyncConnection, order_ids: Sequence[UUID]) -> list[Order | OrderNotFound]:
    """Return each order, or OrderNotFound in its place."""
    cursor = await conn.execute(READ_MANY, [list(order_ids)], prepare=True)
    found = {row[0]: order_of(row) for row in await cursor.fetchall()}
    return [found.get(order_id) or OrderNotFound() for order_id in order_ids]


def order_of(row: tuple[object, ...]) -> Order:
    """Make an Order of a row with the columns of READ_MANY, in their order."""
    order_id, status, version, customer_id, currency, lines, *rest = row
    total_minor, reference, attempts, failure_reason, created_at, updated_at, finished_at = rest
    return Order(
        order_id=order_id,  # type: ignore[arg-type]  # the columns' types are the schema's
        status=status,  # type: ignore[arg-type]
        version=version,  # type: ignore[arg-type]
        customer_id=customer_id,  # type: ignore[arg-type]
        currency=currency,  # type: ignore[arg-type]
        lines=msgspec.Raw(b"null" if lines is None else lines.encode()),  # type: ignore[attr-defined]
        total_minor=total_minor,  # type: ignore[arg-type]
        reference=reference,  # type: ignore[arg-type]
        attempts=attempts,  # type: ignore[arg-type]
        failure_reason=failure_reason,  # type: ignore[arg-type]
        created_at=created_at,  # type: ignore[arg-type]
        updated_at=updated_at,  # type: ignore[arg-type]
        finished_at=finished_at,  # type: ignore[arg-type]
    )
