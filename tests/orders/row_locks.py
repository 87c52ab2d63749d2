"""A stranger who locks orders: a session that is not the product's, in a transaction that stays open."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import psycopg
from psycopg import AsyncConnection

from orders.database.place_orders import Placement


@asynccontextmanager
async def locked(database_url: str, placed: Sequence[Placement]) -> AsyncIterator[AsyncConnection]:
    """Hold the rows of these orders locked, as `SELECT ... FOR UPDATE` in a psql session does; yield its connection."""
    async with await AsyncConnection.connect(database_url) as stranger:
        await lock(stranger, [each.order.order_id for each in placed])
        yield stranger
        await stranger.rollback()


async def lock(stranger: psycopg.AsyncConnection, order_ids: Sequence[UUID]) -> None:
    """Lock the rows of these orders in the stranger's transaction."""
    await stranger.execute("SELECT FROM orders WHERE order_id = ANY(%s) FOR UPDATE", [list(order_ids)])
