"""What the api reads for a request: orders by id and API keys in one batch, steps down a list in another."""

from collections.abc import Sequence

from psycopg import AsyncConnection

from orders.database import api_keys_table, orders_table
from orders.database.api_keys_table import ClientKey, KeyId
from orders.database.orders_table import OrderLookup, ScanPage, ScanStep
from orders.model.errors import OrdersError
from orders.model.order import Order

Read = OrderLookup | KeyId
Found = Order | ClientKey | None


async def read(conn: AsyncConnection, batch: Sequence[Read]) -> Sequence[Found | OrdersError]:
    """Return what each item asks for, in the batch's order; OrderNotFound for an order that is not there.

    All orders of a batch are found by one statement, all keys by another.
    """
    lookups = [item for item in batch if isinstance(item, OrderLookup)]
    orders = iter(await orders_table.read_many(conn, lookups) if lookups else [])
    key_ids = [item for item in batch if isinstance(item, KeyId)]
    keys = await api_keys_table.read_many(conn, key_ids) if key_ids else {}
    answers: list[Found | OrdersError] = []
    for item in batch:
        match item:
            case OrderLookup():
                answers.append(next(orders))
            case KeyId():
                answers.append(keys.get(item))
    return answers


async def scan(conn: AsyncConnection, batch: Sequence[ScanStep]) -> list[ScanPage | OrdersError]:
    """Return what each step down a list finds, in the batch's order, by one statement each."""
    return [await orders_table.scan(conn, step) for step in batch]
