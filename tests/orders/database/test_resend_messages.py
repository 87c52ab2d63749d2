"""What the broker lost is sent again as the same events, in order, and only while the order still waits for it."""

from uuid import UUID

from psycopg import AsyncConnection

from orders.database.place_orders import Placement
from orders.database.resend_messages import LostMessage, resend_messages
from tests.orders.work_samples import claim, place, rows

AGAIN = "SELECT event_id, key, headers, body, content_type, required FROM outbox WHERE exchange = %s ORDER BY id"


async def lost(conn: AsyncConnection, placed: list[Placement]) -> list[LostMessage]:
    found = await rows(conn, "SELECT key, id FROM outbox ORDER BY id")
    ids = {UUID(str(key)): int(str(row_id)) for key, row_id in found}
    return [LostMessage(each.order.order_id, 1, ids[each.order.order_id]) for each in placed]


async def test_the_same_events_go_straight_to_the_queue(conn: AsyncConnection) -> None:
    """
    Each message is the old one to the byte, in the order of the old rows, to the queue alone, and audited.
    """
    messages = await lost(conn, await place(conn, 3))

    assert await resend_messages(conn, "orders.work", messages[::-1], "me@here", "a test's") == 3

    assert await rows(conn, AGAIN, "") == await rows(conn, AGAIN, "orders")
    assert set(await rows(conn, "SELECT routing_key, state FROM outbox WHERE exchange = ''")) == {
        ("orders.work", "pending")
    }
    audit = await rows(conn, "SELECT actor, command, rows, reason FROM outbox_audit")
    assert audit == [("me@here", "requeue", 1, "a test's")] * 3
    assert await rows(conn, "SELECT key, row_id FROM outbox_audit ORDER BY id") == await rows(
        conn, "SELECT key, id FROM outbox WHERE exchange = '' ORDER BY id"
    )


async def test_an_order_that_went_on_is_left_out(conn: AsyncConnection) -> None:
    """
    A claim raises the version: the message was not lost, and only the other order's is sent again.
    """
    placed = await place(conn, 2)
    messages = await lost(conn, placed)
    await claim(conn, placed[:1])

    assert await resend_messages(conn, "orders.work", messages[:1], "me@here", "") == 0
    assert await resend_messages(conn, "orders.work", messages, "me@here", "") == 1

    assert [row[1] for row in await rows(conn, AGAIN, "")] == [str(placed[1].order.order_id)]
    assert await resend_messages(conn, "orders.work", [], "me@here", "") == 0
