"""Look-ups, keys and steps down a list share a batch, and each gets its own answer."""

from uuid import UUID

from psycopg import AsyncConnection

from orders.database import api_keys_table
from orders.database.api_keys_table import ClientKey, KeyId
from orders.database.orders_table import OrderLookup, ScanPage, ScanStep
from orders.database.place_orders import place_orders
from orders.database.reads import read, scan
from orders.model.errors import OrderNotFound
from orders.model.order import Order
from tests.orders.samples import placement

FIRST_STEP = ScanStep(
    client="", status=None, customer_id=None, reference=None, after=UUID(int=2**128 - 1), wanted=10, window=100,
    bytes=1 << 20,
)  # fmt: skip


async def test_answers_come_in_the_order_of_the_batch(conn: AsyncConnection) -> None:
    """
    An order, a key and a page stand where they were asked for; what is not there is said in its place.
    """
    one, other = placement(reference="one"), placement(reference="other")
    await place_orders(conn, [one, other])
    key = ClientKey("shop", b"\0" * 32)
    await api_keys_table.add(conn, KeyId("k1"), key)

    (page,) = await scan(conn, [FIRST_STEP])
    found = await read(
        conn,
        [
            KeyId("k2"),
            OrderLookup("", other.order.order_id),
            OrderLookup("shop", one.order.order_id),
            KeyId("k1"),
            OrderLookup("", one.order.order_id),
        ],
    )

    no_key, order, not_theirs, known, own = found
    assert (no_key, known) == (None, key)
    assert isinstance(order, Order)
    assert isinstance(own, Order)
    assert (order.reference, own.reference) == ("other", "one")
    assert isinstance(page, ScanPage)
    assert page.orders == [order, own]
    assert isinstance(not_theirs, OrderNotFound)


async def test_an_empty_batch_asks_nothing(conn: AsyncConnection) -> None:
    """
    Without items there are no answers.
    """
    assert await read(conn, []) == []
    assert await scan(conn, []) == []
