"""How the attempts at an order ended stands in its row, unless it was done at once."""

from psycopg import AsyncConnection

from orders.broker.topology import WORK_QUEUE
from orders.database import attempt_log, retries_table
from orders.database.claim_orders import NO_WORKER, hand_back
from orders.database.dead_letters_table import DeadLetter, PoisonMark, store
from orders.database.finish_orders import finish_of, finish_orders
from orders.database.place_orders import Placement
from orders.database.postpone_orders import Postpone, postpone_orders
from orders.database.redrive_orders import Redrive, redrive_orders
from orders.model.traceparent import continue_trace
from tests.orders.work_samples import WORKER, claim, place, rows, work_message

TRACE = continue_trace(None)


async def outcomes(conn: AsyncConnection, placed: Placement) -> list[str]:
    """How each attempt of an order ended."""
    attempts = await attempt_log.read(conn, placed.order.order_id)
    assert attempts is not None
    return [each.outcome for each in attempts]


async def fail_once(conn: AsyncConnection, placed: Placement, reason: str) -> None:
    """Have the handler of a claimed order fail, and its retry come at once."""
    [claimed] = await claim(conn, [placed])
    postponed = Postpone(claimed, work_message(placed), 0, placed.event.body, TRACE, "KeyError", reason)
    await postpone_orders(conn, [postponed])
    await retries_table.send_due(conn, WORK_QUEUE, 10, within_seconds=60)


async def test_an_order_that_is_done_at_once_has_no_log(conn: AsyncConnection) -> None:
    """
    The ordinary order writes nothing of its attempt.
    """
    [placed] = await place(conn)

    await finish_orders(conn, [finish_of(each, TRACE) for each in await claim(conn, [placed])])

    assert await rows(conn, "SELECT status, attempt_log FROM orders") == [("done", None)]
    assert await outcomes(conn, placed) == []


async def test_attempts_until_the_end(conn: AsyncConnection) -> None:
    """
    Failures, hand-backs and the last end are kept with time, worker, error, reason and the next try.
    """
    [placed] = await place(conn)
    await fail_once(conn, placed, "KeyError: 'a'")
    await claim(conn, [placed])
    await hand_back(conn, WORKER, [placed.order.order_id])
    await finish_orders(conn, [finish_of(each, TRACE) for each in await claim(conn, [placed])])

    attempts = await attempt_log.read(conn, placed.order.order_id)
    assert attempts is not None
    assert [(each.attempt, each.outcome) for each in attempts] == [(1, "retry"), (2, "handed back"), (3, "done")]
    first, _, last = attempts
    assert (first.error, first.reason, first.worker) == ("KeyError", "KeyError: 'a'", attempt_log.own_name())
    assert first.started is not None
    assert first.next_try is not None
    assert first.started < first.ended <= first.next_try
    assert (last.error, last.reason, last.next_try) == (None, None, None)


async def test_a_failed_order_tells_why(conn: AsyncConnection) -> None:
    """
    A refusal is kept with its reason, also after a redrive, which has a line of its own.
    """
    [placed] = await place(conn)
    ends = [finish_of(each, TRACE, "no stock", "refused", "Refuse") for each in await claim(conn, [placed])]
    await finish_orders(conn, ends)
    [(letter,)] = await rows(conn, "SELECT id FROM dead_letters")
    assert isinstance(letter, int)
    await redrive_orders(conn, Redrive("ann@desk", "stock came"), [letter])

    attempts = await attempt_log.read(conn, placed.order.order_id)
    assert attempts is not None
    assert [(each.outcome, each.worker, each.error, each.reason) for each in attempts] == [
        ("refused", attempt_log.own_name(), "Refuse", "no stock"), ("redriven", "ann@desk", None, "stock came"),
    ]  # fmt: skip


async def test_a_worker_that_vanished_is_told(conn: AsyncConnection) -> None:
    """
    An attempt whose worker died, and one that the same worker claimed once more, have their entries.
    """
    [placed] = await place(conn)
    await claim(conn, [placed])
    await claim(conn, [placed])
    await claim(conn, [placed], WORKER + 1)
    await store(conn, [PoisonMark(placed.event.event_id, "it died alone")])
    await store(conn, [DeadLetter(placed.event.body, len(placed.event.body))])

    attempts = await attempt_log.read(conn, placed.order.order_id)
    assert attempts is not None
    assert [(each.attempt, each.outcome, each.worker, each.reason) for each in attempts] == [
        (1, "interrupted", f"lock {WORKER}", None), (2, "vanished", f"lock {WORKER}", None),
        (3, "deadly", attempt_log.own_name(), "it died alone"),
    ]  # fmt: skip


async def test_a_log_is_bounded(conn: AsyncConnection) -> None:
    """
    The last 20 entries stay.
    """
    [placed] = await place(conn)
    for number in range(25):
        await fail_once(conn, placed, f"reason {number}")

    attempts = await attempt_log.read(conn, placed.order.order_id)
    assert attempts is not None
    assert [each.reason for each in attempts] == [f"reason {number}" for number in range(5, 25)]
    assert await rows(conn, "SELECT worker FROM orders") == [(NO_WORKER,)]


async def test_an_order_that_does_not_exist_has_none(conn: AsyncConnection) -> None:
    """
    An unknown order is told from one without a log.
    """
    [placed] = await place(conn)

    assert await attempt_log.read(conn, placed.event.event_id) is None
    assert await attempt_log.read(conn, placed.order.order_id) == []
