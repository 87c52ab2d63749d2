"""Messages that are never worked: each is stored, and its order fails."""

import msgspec
from psycopg import AsyncConnection

from orders.database import attempt_log
from orders.database.dead_letters_table import (
    UNDELIVERABLE,
    BroughtBack,
    DeadLetter,
    GivenUp,
    PoisonMark,
    store,
)
from orders.database.finish_orders import Finished, finish_of, finish_orders
from orders.database.postpone_orders import Postpone, postpone_orders
from orders.database.redrive_orders import Redrive, redrive_orders
from orders.model import events
from orders.model.events import Data
from orders.model.ids import uuid7
from orders.model.traceparent import continue_trace
from tests.orders.work_samples import LETTERS, STATUSES, claim, fail, place, rows, work_message

TRACE = continue_trace(None)


def letter(body: bytes, size: int | None = None) -> DeadLetter:
    return DeadLetter(body, len(body) if size is None else size)


def expired(body: bytes, reason: str = "expired") -> DeadLetter:
    return DeadLetter(body, len(body), GivenUp(reason, "policy 'all' sets a limit", continue_trace(None)))


def forged_event(order_id: object = None) -> bytes:
    """A well-formed event that no outbox of ours has written."""
    data = msgspec.convert({"order_id": str(order_id or uuid7()), "status": "placed", "version": 1}, Data)
    return events.event_of("order.placed", data, continue_trace(None)).body


async def test_garbage_becomes_a_letter(conn: AsyncConnection) -> None:
    """
    A message that is no event of ours is kept, once however often it arrives, and changes no order.
    """
    [placed] = await place(conn)
    garbage, stranger, forger = (
        letter(b"\0garbage"),
        letter(forged_event()),
        letter(forged_event(placed.order.order_id)),
    )

    await store(conn, [garbage, stranger, forger])
    await store(conn, [garbage])

    kinds = [(order_id, kind, state, arrivals) for order_id, kind, _, state, arrivals in await rows(conn, LETTERS)]
    assert kinds == [
        (None, "malformed", "dead", 2), (None, "unknown", "dead", 1), (None, "forged", "dead", 1),
    ]  # fmt: skip
    assert await rows(conn, STATUSES) == [("placed", 1)]


async def test_order_fails_with_its_own_event(conn: AsyncConnection) -> None:
    """
    An order whose own message is dead-lettered is failed with the reason, and tells of it, once.
    """
    [deadly] = await place(conn)
    await claim(conn, [deadly])
    await store(conn, [PoisonMark(deadly.event.event_id, "it died alone")])

    for _ in range(2):
        await store(conn, [letter(deadly.event.body)])

    assert await rows(conn, LETTERS) == [(deadly.order.order_id, "deadly", "it died alone", "dead", 2)]
    assert await rows(conn, "SELECT status, failure_reason, version FROM orders") == [("failed", "it died alone", 3)]
    assert await rows(conn, "SELECT count(*) FROM outbox WHERE routing_key = 'order.failed'") == [(1,)]
    assert await rows(conn, "SELECT count(*) FROM verdicts") == [(0,)]


async def test_a_copied_event_fails_no_order(conn: AsyncConnection) -> None:
    """
    The very bytes of an order's event, which every subscriber has, do not fail the order that a worker has in hand.
    """
    [placed] = await place(conn)
    [claimed] = await claim(conn, [placed])

    [first] = await store(conn, [letter(placed.event.body)])
    [second] = await store(conn, [letter(placed.event.body)])

    assert isinstance(first, BroughtBack)
    assert first.seconds is not None
    assert second == BroughtBack("unexplained", placed.order.order_id, None)
    assert await rows(conn, LETTERS) == []
    assert [isinstance(each, Finished) for each in await finish_orders(conn, [finish_of(claimed, TRACE)])] == [True]
    assert await rows(conn, STATUSES) == [("done", 1)]


async def test_order_older_than_the_column_waits_for_any_event(conn: AsyncConnection) -> None:
    """
    An order that does not know its event is failed by its dead letter too.
    """
    [placed] = await place(conn)
    await conn.execute("UPDATE orders SET event_id = NULL")
    await store(conn, [PoisonMark(placed.event.event_id, "it died alone")])

    await store(conn, [letter(placed.event.body)])

    assert await rows(conn, LETTERS) == [(placed.order.order_id, "deadly", "it died alone", "dead", 1)]
    assert await rows(conn, STATUSES) == [("failed", 1)]


async def test_terminal_order_stays_as_it_is(conn: AsyncConnection) -> None:
    """
    A copy of its message that dies later does not fail an order that is done.
    """
    [placed] = await place(conn)
    await conn.execute("UPDATE orders SET status = 'done', version = 3, finished_at = now()")

    await store(conn, [letter(placed.event.body)])

    assert await rows(conn, STATUSES) == [("done", 1)]


async def test_message_of_an_earlier_life_fails_nothing(conn: AsyncConnection) -> None:
    """
    When an order was redriven, the dead letter of its first message may arrive again: the new life goes on.
    """
    [placed] = await place(conn)
    await fail(conn, await claim(conn, [placed]))
    await redrive_orders(conn, Redrive("test"), [1])

    await store(conn, [letter(placed.event.body)])

    assert await rows(conn, STATUSES) == [("placed", 1)]
    [(_, kind, _, state, arrivals)] = await rows(conn, LETTERS)
    assert (kind, state, arrivals) == ("refused", "redriven", 2)
    assert work_message(placed).version == 1


async def test_a_message_that_the_broker_gave_up_brings_its_order_back(conn: AsyncConnection) -> None:
    """
    An order is not failed for a message that expired: it gets the message once more, once, after half its age.
    """
    [placed] = await place(conn)
    await conn.execute("UPDATE orders SET placed_at = placed_at - interval '20 s'")

    [back] = await store(conn, [expired(placed.event.body)])
    [again] = await store(conn, [expired(placed.event.body)])

    assert isinstance(back, BroughtBack)
    assert back.order_id == placed.order.order_id
    assert back.seconds is not None
    assert 4 < back.seconds < 15
    assert again == BroughtBack("expired", placed.order.order_id, None)
    assert await rows(conn, STATUSES) == [("placed", 1)]
    assert await rows(conn, "SELECT order_id, event_id, body FROM retries") == [
        (placed.order.order_id, placed.event.event_id, placed.event.body)
    ]
    assert await rows(conn, "SELECT count(*) FROM dead_letters") == [(0,)]
    assert [
        (each.outcome, each.reason) for each in await attempt_log.read(conn, placed.order.order_id) or ()
    ] == [("expired", "policy 'all' sets a limit")]  # fmt: skip


async def test_nobody_waits_for_a_message_that_the_broker_gave_up(conn: AsyncConnection) -> None:
    """
    An expired message of an order that has ended, or waits for another event, changes nothing; what is no message of
    an order is a dead letter however it came.
    """
    ended, other = await place(conn, 2)
    await fail(conn, await claim(conn, [ended]))
    await conn.execute("DELETE FROM dead_letters")

    answers = await store(
        conn, [expired(ended.event.body), expired(forged_event(other.order.order_id)), expired(forged_event())]
    )

    assert answers == [*(BroughtBack("expired", each.order.order_id, None) for each in (ended, other)), None]
    assert await rows(conn, "SELECT count(*) FROM retries") == [(0,)]
    assert [kind for _, kind, *_ in await rows(conn, LETTERS)] == ["unknown"]


async def test_poison_stays_poison_when_the_broker_gives_its_message_up(conn: AsyncConnection) -> None:
    """
    An order that crash isolation has found, or that was attempted as often as we allow deliveries, fails.
    """
    marked, worn_out, innocent = await place(conn, 3)
    await store(conn, [PoisonMark(marked.event.event_id, "it died alone")])
    await conn.execute("UPDATE orders SET attempts = 1000 WHERE order_id = %s", [worn_out.order.order_id])

    await store(conn, [expired(each.event.body, "delivery_limit") for each in (marked, worn_out, innocent)])

    assert [(kind, reason) for _, kind, reason, *_ in await rows(conn, LETTERS)] == [
        ("deadly", "it died alone"), ("undeliverable", UNDELIVERABLE),
    ]  # fmt: skip
    assert await rows(conn, "SELECT order_id FROM retries") == [(innocent.order.order_id,)]


async def test_a_retry_that_waits_is_not_hurried(conn: AsyncConnection) -> None:
    """
    A second message of a postponed order that expires leaves its retry as it is; a retry of an earlier event gives way.
    """
    [placed] = await place(conn)
    [claimed] = await claim(conn, [placed])
    trace = continue_trace(None)
    await postpone_orders(conn, [Postpone(claimed, work_message(placed), 600, placed.event.body, trace)])
    due = await rows(conn, "SELECT due_at FROM retries")

    await store(conn, [expired(placed.event.body)])
    assert await rows(conn, "SELECT due_at FROM retries") == due

    await conn.execute("UPDATE retries SET event_id = %s", [uuid7()])
    await store(conn, [expired(placed.event.body)])
    assert await rows(conn, "SELECT event_id FROM retries") == [(placed.event.event_id,)]
