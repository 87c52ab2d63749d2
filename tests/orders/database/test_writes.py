"""Placements and cancellations share a batch, and each gets its own answer."""

from psycopg import AsyncConnection

from orders.database.cancel_orders import Cancellation, Cancelled
from orders.database.place_orders import Placed
from orders.database.writes import Write, write
from orders.model.errors import OrderNotFound
from orders.model.ids import uuid7
from orders.model.traceparent import continue_trace
from tests.orders.samples import counts, placement


def cancellation(order_id: object) -> Cancellation:
    return Cancellation(order_id=order_id, client="", traceparent=continue_trace(None))  # type: ignore[arg-type]


async def test_answers_come_in_the_order_of_the_batch(conn: AsyncConnection) -> None:
    """
    However placements and cancellations follow each other, an answer stands where its question stood.
    """
    placed = placement()
    await write(conn, [placed])
    first, second = placement(), placement()
    batch: list[Write] = [cancellation(uuid7()), first, cancellation(placed.order.order_id), second]

    unknown, *rest = await write(conn, batch)

    assert isinstance(unknown, OrderNotFound)
    assert [type(answer) for answer in rest] == [Placed, Cancelled, Placed]
    assert [answer.order_id for answer in rest if isinstance(answer, Placed)] == [
        first.order.order_id,
        second.order.order_id,
    ]
    assert await counts(conn) == (3, 4, 0)


async def test_an_order_is_cancelled_in_the_batch_that_places_it(conn: AsyncConnection) -> None:
    """
    Placements come first: an order that is placed and cancelled by one batch ends as cancelled.
    """
    placed = placement()

    cancelled, _ = await write(conn, [cancellation(placed.order.order_id), placed])

    assert isinstance(cancelled, Cancelled)


async def test_cancellations_alone(conn: AsyncConnection) -> None:
    """
    A batch without placements places nothing.
    """
    [answer] = await write(conn, [cancellation(uuid7())])

    assert isinstance(answer, OrderNotFound)
    assert await counts(conn) == (0, 0, 0)
