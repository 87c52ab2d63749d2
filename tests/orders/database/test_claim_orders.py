"""An order is claimed for the event that it waits for, once at a time, and fenced by the attempt."""

import msgspec
import pytest
from psycopg import AsyncConnection

from orders.database.claim_orders import (
    NO_WORKER,
    Claim,
    Claimed,
    Forged,
    Held,
    Orphaned,
    Postponed,
    Seen,
    Settled,
    Unknown,
    claim_of,
    claim_orders,
    hand_back,
)
from orders.database.finish_orders import Finished, finish_of, finish_orders
from orders.database.postpone_orders import Postpone, postpone_orders
from orders.database.redrive_orders import Redrive, redrive_orders
from orders.database.row_locks import Busy
from orders.database.worker_lock import WorkerLock
from orders.model.ids import uuid7
from orders.model.traceparent import continue_trace
from orders.model.work_message import WorkMessage
from tests.eventually import eventually
from tests.orders.work_samples import WORKER, claim, fail, place, rows, work_message


async def test_claim_counts_the_attempt(conn: AsyncConnection) -> None:
    """
    A claim moves the order to processing; the same worker may claim it again, and each claim has another number.
    """
    [placed] = await place(conn)

    [first] = await claim(conn, [placed])
    [second] = await claim(conn, [placed])

    assert (first.order.status, first.order.version, first.order.attempts, first.suspect) == ("processing", 2, 1, False)
    assert (second.order.version, second.order.attempts, second.suspect) == (2, 2, False)


async def test_order_of_a_living_worker_is_held(conn: AsyncConnection, database_url: str) -> None:
    """
    While its worker's lock is held, nobody else gets the order; once it is gone, the next one does, with suspicion.
    """
    [placed] = await place(conn)
    async with WorkerLock(database_url) as worker_lock:
        await eventually(worker_lock.held.is_set)
        await claim(conn, [placed], worker_lock.number)

        assert await claim_orders(conn, WORKER, [work_message(placed)]) == [Held()]

    async def is_claimed() -> Claimed | None:
        [each] = await claim_orders(conn, WORKER, [work_message(placed)])
        return each if isinstance(each, Claimed) else None

    taken = await eventually(is_claimed)
    assert taken is not None
    assert taken.suspect
    assert taken.order.attempts == 2


async def test_order_that_was_handed_back_is_no_suspect(conn: AsyncConnection) -> None:
    """
    What a worker hands back when it stops, the next one takes at once, and nothing is counted against it.
    """
    [placed] = await place(conn)
    await claim(conn, [placed])

    assert await hand_back(conn, WORKER, [placed.order.order_id]) == 1
    [taken] = await claim(conn, [placed], WORKER + 1)

    assert not taken.suspect
    assert taken.failures == 0


async def test_forged_and_unknown_events_change_nothing(conn: AsyncConnection) -> None:
    """
    An event with another id than the order waits for, or of no order, claims nothing.
    """
    [placed] = await place(conn)
    forged = WorkMessage(placed.order.order_id, uuid7(), 1)
    unknown = WorkMessage(uuid7(), uuid7(), 1)

    assert await claim_orders(conn, WORKER, [forged, unknown]) == [Forged(), Unknown()]
    assert await rows(conn, "SELECT status, version, attempts FROM orders") == [("placed", 1, 0)]


async def test_event_before_a_redrive_is_old_news(conn: AsyncConnection) -> None:
    """
    When an order was redriven, its first event may come again: it starts nothing, and is no forgery.
    """
    [placed] = await place(conn)
    await fail(conn, await claim(conn, [placed]))
    assert await redrive_orders(conn, Redrive("test"), [1]) == [1]

    assert await claim_orders(conn, WORKER, [work_message(placed)]) == [Settled("placed")]


async def test_repeat_of_a_finished_order_is_settled(conn: AsyncConnection) -> None:
    """
    A delivery after the end finds nothing to do.
    """
    [placed] = await place(conn)
    await finish_orders(conn, [finish_of(each, continue_trace(None)) for each in await claim(conn, [placed])])

    assert await claim_orders(conn, WORKER, [work_message(placed)]) == [Settled("done")]


async def test_order_that_waits_for_its_retry_is_left_alone(conn: AsyncConnection) -> None:
    """
    A repeat of its message does not cut the wait short.
    """
    [placed] = await place(conn)
    [claimed] = await claim(conn, [placed])
    await postpone_orders(conn, [Postpone(claimed, work_message(placed), 60, placed.event.body, continue_trace(None))])

    assert await claim_orders(conn, WORKER, [work_message(placed)]) == [Postponed()]


async def test_order_from_before_the_event_was_kept_takes_any(conn: AsyncConnection) -> None:
    """
    Rows that an api of the version before has written know no event: they are worked all the same.
    """
    [placed] = await place(conn)
    await conn.execute("UPDATE orders SET event_id = NULL, placed_at = NULL")

    [claimed] = await claim_orders(conn, WORKER, [work_message(placed)])

    assert isinstance(claimed, Claimed)
    [finished] = await finish_orders(conn, [finish_of(claimed, continue_trace(None))])
    assert isinstance(finished, Finished)
    assert finished.seconds > 0


OWN, OTHER, ORDER = uuid7(), uuid7(), uuid7()
OURS = 8
WAITS = Seen(
    status="processing", worker=7, attempts=2, event_id=OWN, version=2, redrives=0, is_worked=True, is_postponed=False
)


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({}, Held()),
        ({"is_worked": False}, Orphaned(7, 2)),
        ({"is_worked": False, "worker": NO_WORKER}, Orphaned(NO_WORKER, 2)),
        # Its worker is gone, but it is not to be worked now.
        ({"is_worked": False, "worker": NO_WORKER, "is_postponed": True}, Postponed()),
        ({"is_postponed": True}, Postponed()),
        # The claim could have had these: it has skipped them.
        ({"status": "placed", "worker": None, "is_worked": None}, Busy(ORDER)),
        ({"worker": OURS}, Busy(ORDER)),
        ({"worker": OURS, "is_postponed": True}, Postponed()),
        ({"worker": OURS, "status": "done"}, Settled("done")),
        ({"worker": None, "is_worked": None}, Held()),
        ({"status": "done", "worker": None, "is_worked": None}, Settled("done")),
        ({"status": "failed", "worker": None, "is_worked": None}, Settled("failed")),
        ({"status": "cancelled", "worker": None, "is_worked": None}, Settled("cancelled")),
        # An order from before events had ids takes any.
        ({"event_id": None}, Held()),
        ({"event_id": None, "is_worked": False}, Orphaned(7, 2)),
        ({"event_id": None, "status": "done"}, Settled("done")),
        # Another event than its own: old news after a redrive, else a forgery, whatever has become of the order.
        ({"event_id": OTHER}, Forged()),
        ({"event_id": OTHER, "status": "done"}, Forged()),
        ({"event_id": OTHER, "is_worked": False}, Forged()),
        ({"event_id": OTHER, "redrives": 1, "version": 5}, Settled("processing")),
        ({"event_id": OTHER, "redrives": 1, "version": 5, "status": "done"}, Settled("done")),
        ({"event_id": OTHER, "redrives": 1, "version": 1}, Forged()),
        ({"event_id": OTHER, "redrives": 1, "version": 0}, Forged()),
    ],
)
def test_why_an_order_could_not_be_claimed(changes: dict[str, object], claim: Claim | Orphaned) -> None:
    """
    What a look finds says whether an order is held, waits, is settled, is asked for by a forgery, or is nobody's.
    """
    seen = msgspec.structs.replace(WAITS, **changes)

    assert claim_of(seen, WorkMessage(ORDER, OWN, 1), OURS) == claim
