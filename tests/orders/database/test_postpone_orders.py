"""A retry waits in its table, and comes back through the outbox, once."""

from psycopg import AsyncConnection

from orders.broker.topology import WORK_QUEUE
from orders.database import postpone_orders, retries_table
from orders.database.claim_orders import Claimed, claim_orders
from orders.database.postpone_orders import Postpone
from orders.database.retries_table import Due
from orders.model.traceparent import continue_trace
from orders.work.decision import MAX_RETRY_SECONDS, retry_seconds
from tests.orders.work_samples import WORKER, claim, place, rows, work_message

SENT = "SELECT event_id, key, exchange, routing_key, required, body FROM outbox WHERE exchange = ''"


async def test_retry_comes_when_it_is_due(conn: AsyncConnection) -> None:
    """
    A postponed order is sent again when its time has come, not before, with the bytes of its first message.
    """
    soon, later = await place(conn, 2)
    claims = await claim(conn, [soon, later])
    await postpone_orders.postpone_orders(
        conn,
        [
            Postpone(each, work_message(placed), seconds, placed.event.body, continue_trace(None))
            for each, placed, seconds in zip(claims, [soon, later], [0, 60], strict=True)
        ],
    )
    assert (await retries_table.count(conn, after_seconds=0, page=0, pages=100)).rows == 2

    assert await retries_table.send_due(conn, WORK_QUEUE, 10, within_seconds=60) == Due(1, [])
    assert await retries_table.send_due(conn, WORK_QUEUE, 10, within_seconds=60) == Due(0, [])

    assert await rows(conn, SENT) == [
        (soon.event.event_id, str(soon.order.order_id), "", WORK_QUEUE, True, soon.event.body)
    ]
    [claimed] = await claim_orders(conn, WORKER + 1, [work_message(soon)])
    assert isinstance(claimed, Claimed)
    assert (claimed.failures, claimed.suspect) == (1, False)


async def test_late_worker_postpones_nothing(conn: AsyncConnection) -> None:
    """
    A failure under a claim that was taken over is nobody's failure.
    """
    [placed] = await place(conn)
    [late] = await claim(conn, [placed])
    await claim(conn, [placed])

    await postpone_orders.postpone_orders(
        conn, [Postpone(late, work_message(placed), 0, placed.event.body, continue_trace(None))]
    )

    assert (await retries_table.count(conn, after_seconds=0, page=0, pages=100)).rows == 0
    assert await rows(conn, "SELECT failures, worker FROM orders") == [(0, WORKER)]


async def test_batch_that_is_run_again(conn: AsyncConnection) -> None:
    """
    A batch whose commit got no answer is run again: its failures count once, and its retries come once.
    """
    waiting, sent = await place(conn, 2)
    batch = [
        Postpone(claimed, work_message(placed), seconds, placed.event.body, continue_trace(None))
        for claimed, placed, seconds in zip(await claim(conn, [waiting, sent]), [waiting, sent], [60, 0], strict=True)
    ]
    await postpone_orders.postpone_orders(conn, batch)
    assert await retries_table.send_due(conn, WORK_QUEUE, 10, within_seconds=60) == Due(1, [])

    assert await postpone_orders.postpone_orders(conn, batch) == [None, None]

    assert await rows(conn, "SELECT failures, worker FROM orders") == [(1, 0), (1, 0)]
    assert await rows(conn, "SELECT order_id FROM retries") == [(waiting.order.order_id,)]


def test_pauses_double_up_to_a_limit() -> None:
    """
    Each failure doubles the wait, half of it at random; the longest is bounded.
    """
    assert 0.1 <= retry_seconds(0) <= 0.2
    assert 0.8 <= retry_seconds(3) <= 1.6
    assert MAX_RETRY_SECONDS / 2 <= retry_seconds(500) <= MAX_RETRY_SECONDS
