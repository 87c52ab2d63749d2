"""A status and its event are written by one transaction, once."""

import re

from psycopg import AsyncConnection

from orders.database.finish_orders import Finished, finish_of, finish_orders
from orders.model import events
from orders.model.traceparent import continue_trace
from orders.work.decision import EndOrder, decide
from orders.work.runner import outcome_of
from tests.orders.work_samples import LETTERS, claim, place, rows

EVENTS_OF_THE_END = "SELECT routing_key, required, body FROM outbox WHERE routing_key <> 'order.placed' ORDER BY id"


async def test_repeat_of_a_finish(conn: AsyncConnection) -> None:
    """
    A finish that is run twice finishes the order once, and tells of it once.
    """
    placed = await place(conn)
    finishes = [finish_of(each, continue_trace(None)) for each in await claim(conn, placed)]

    [first] = await finish_orders(conn, finishes)
    [second] = await finish_orders(conn, finishes)

    assert isinstance(first, Finished)
    assert first.status == "done"
    assert 0 < first.seconds < 60
    assert second is None
    [(routing_key, required, body)] = await rows(conn, EVENTS_OF_THE_END)
    assert (routing_key, required) == ("order.done", False)
    assert isinstance(body, bytes)
    assert events.open_envelope(body).data.version == 3


async def test_late_worker_is_fenced(conn: AsyncConnection) -> None:
    """
    Whoever claimed an order before somebody else did cannot finish it any more.
    """
    placed = await place(conn)
    [late] = await claim(conn, placed)
    [current] = await claim(conn, placed)
    trace = continue_trace(None)

    assert await finish_orders(conn, [finish_of(late, trace, "too late", "refused")]) == [None]
    assert await rows(conn, LETTERS) == []
    [finished] = await finish_orders(conn, [finish_of(current, trace)])
    assert isinstance(finished, Finished)


async def test_details_are_for_operators(conn: AsyncConnection) -> None:
    """
    What a handler's error says is in the dead letter and the attempt log, and neither in the order nor in its event.
    """
    [claimed] = await claim(conn, await place(conn))
    error = ConnectionError("cannot reach https://svc:not-a-real-secret@payments.internal/charge")
    step = decide(outcome_of(error, 60), 4, 5)
    assert isinstance(step, EndOrder)

    await finish_orders(
        conn,
        [finish_of(claimed, continue_trace(None), step.failure_reason, step.kind, step.error, step.details)],
    )

    [(public, event)] = await rows(
        conn, "SELECT o.failure_reason, convert_from(e.body, 'UTF8') FROM orders o, outbox e "
        "WHERE e.routing_key = 'order.failed'"
    )  # fmt: skip
    assert isinstance(public, str)
    assert re.fullmatch(r"ConnectionError, reference [0-9a-f]{8} \(attempt 5 of 5\)", public)
    assert public in str(event)
    assert "not-a-real-secret" not in str(event)
    for operators in ("SELECT reason FROM dead_letters", "SELECT attempt_log::text FROM orders"):
        assert "not-a-real-secret" in str(await rows(conn, operators))


async def test_failure_leaves_a_letter(conn: AsyncConnection) -> None:
    """
    An order that fails has its reason, its event, and a dead letter to bring it back by.
    """
    placed = await place(conn)
    [claimed] = await claim(conn, placed)

    await finish_orders(conn, [finish_of(claimed, continue_trace(None), "card\0declined", "exhausted")])

    reason = "card\N{REPLACEMENT CHARACTER}declined"
    assert await rows(conn, "SELECT status, failure_reason, worker FROM orders") == [("failed", reason, None)]
    assert await rows(conn, LETTERS) == [(placed[0].order.order_id, "exhausted", reason, "dead", 1)]
    [(routing_key, _, body)] = await rows(conn, EVENTS_OF_THE_END)
    assert routing_key == "order.failed"
    assert isinstance(body, bytes)
    assert events.open_envelope(body).data.failure_reason == reason
