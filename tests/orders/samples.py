"""Orders as clients ask for them, and what the tables then hold."""

from typing import LiteralString

from psycopg import AsyncConnection

from orders.database.place_orders import Placement, placement_of
from orders.model.order import Line, NewOrder
from orders.model.traceparent import continue_trace

PLACED_AND_TOLD: LiteralString = """
    SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM outbox), (SELECT count(*) FROM idempotency_keys)
"""


def new_order(*, customer_id: str = "17850", quantity: int = 6, reference: str | None = None) -> NewOrder:
    """A small order."""
    line = Line(sku="85123A", quantity=quantity, unit_price_minor=255, description="WHITE HANGING HEART")
    return NewOrder(customer_id=customer_id, currency="GBP", lines=[line], reference=reference)


def placement(key: str | None = None, **changes: object) -> Placement:
    """All that is written for a small order."""
    new = new_order(**changes)  # type: ignore[arg-type]  # a sample's fields
    return placement_of(new, client="", traceparent=continue_trace(None), key=key)


async def counts(conn: AsyncConnection) -> tuple[int, int, int]:
    """How many orders, outbox rows and keys there are."""
    row = await (await conn.execute(PLACED_AND_TOLD)).fetchone()
    assert row is not None
    return int(row[0]), int(row[1]), int(row[2])
