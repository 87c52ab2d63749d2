"""Hand the orders of a worker that stops back to the others."""

import logging
from collections.abc import Sequence
from uuid import UUID

import psycopg

from orders.database import claim_orders, postgres
from orders.model.error_text import first_line

log = logging.getLogger(__name__)

CALL_SECONDS = 0.5


async def hand_back(url: str, worker: int, order_ids: Sequence[UUID]) -> int:
    """Release the claims that `worker` still has on these orders; return how many there were.

    Other workers then take them at once and not as suspects. Never raises a database error: without the release they
    take them all the same, as suspects.
    """
    if not order_ids:
        return 0
    conn = None
    try:
        conn = await postgres.connect(url, "orders-hand-back")
        with postgres.deadline(conn, CALL_SECONDS):
            return await claim_orders.hand_back(conn, worker, order_ids)
    except psycopg.Error as error:
        log.warning("could not hand back %s orders: %s", len(order_ids), first_line(error))
        return 0
    finally:
        await postgres.close(conn)
