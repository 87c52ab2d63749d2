"""A handler with a transaction of its own: each order is booked once, whatever happens to the worker.

    python -m examples.bookkeeper                         # makes its table, once; DATABASE_URL is the owner's
    ORDERS_HANDLER=examples.bookkeeper:book python -m orders.worker

The booking is committed together with the order's end. A worker that dies before has booked nothing, and one that comes
late, when another has taken the order over, cannot book it a second time.
"""

import os

import psycopg
from psycopg import AsyncConnection

from orders.handlers import Refuse
from orders.model.order import Order


async def book(order: Order, conn: AsyncConnection) -> None:
    """Book the order's total; there is nothing to book for an order without a customer."""
    if order.customer_id is None:
        raise Refuse("an order without a customer cannot be booked")
    await conn.execute(
        "INSERT INTO bookings (order_id, customer_id, currency, total_minor) VALUES (%s, %s, %s, %s)",
        [order.order_id, order.customer_id, order.currency, order.total_minor],
    )


def create_table(database_url: str) -> None:
    """Make the table, for the worker's role. It has no unique key, on purpose: it is the worker that books once."""
    with psycopg.connect(database_url) as conn:
        conn.execute(
            """
            CREATE TABLE IF NOT EXISTS bookings (
                id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                order_id     uuid        NOT NULL,
                customer_id  text        NOT NULL,
                currency     text        NOT NULL,
                total_minor  bigint      NOT NULL,
                at           timestamptz NOT NULL DEFAULT clock_timestamp()
            )
            """
        )
        conn.execute("GRANT INSERT ON bookings TO orders_worker")


if __name__ == "__main__":
    create_table(os.environ["DATABASE_URL"])
