"""Everything the api writes: placements and cancellations, which share one batch."""

from collections.abc import Sequence
from typing import cast

from psycopg import AsyncConnection

from orders.database.cancel_orders import Cancellation, Cancelled, cancel_orders
from orders.database.place_orders import Placed, Placement, place_orders
from orders.model.errors import OrdersError

Write = Placement | Cancellation
Written = Placed | Cancelled


async def write(conn: AsyncConnection, batch: Sequence[Write]) -> Sequence[Written | OrdersError]:
    """Place and cancel orders; return what became of each, in the batch's order.

    All placements are one statement. Cancellations are rare, and have statements of their own. Harmless to repeat.
    """
    cancellations = [item for item in batch if isinstance(item, Cancellation)]
    if not cancellations:
        return await place_orders(conn, cast(Sequence[Placement], batch))
    placements = [item for item in batch if isinstance(item, Placement)]
    placed = iter(await place_orders(conn, placements) if placements else [])
    cancelled = iter(await cancel_orders(conn, cancellations))
    return [next(cancelled) if isinstance(item, Cancellation) else next(placed) for item in batch]
