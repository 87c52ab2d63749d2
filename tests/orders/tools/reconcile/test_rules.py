"""What is wrong with an order is decided from values: its row, its outbox rows, and how far back those go."""

import msgspec
import pytest

from orders.model.ids import uuid7
from orders.tools.reconcile.rules import (
    AGAIN,
    EventSeen,
    Fault,
    OrderSeen,
    OutboxCoverage,
    RetryWait,
    find_faults,
    retry_wait,
)

ORDER = OrderSeen(order_id=uuid7(), status="done", version=3, updated=100.0)
PLACED = EventSeen(row_id=1, type="order.placed", version=1, state="sent", created=90.0, settled=91.0, transaction=1)
DONE = EventSeen(row_id=2, type="order.done", version=3, state="unrouted", created=100.0, settled=101.0, transaction=2)
FAILED = msgspec.structs.replace(DONE, type="order.failed")
REDRIVEN = EventSeen(
    row_id=3, type="order.redriven", version=4, state="sent", created=110.0, settled=111.0, transaction=3
)
LONG = OutboxCoverage(0.0)


def causes(order: OrderSeen | None, *rows: EventSeen, coverage: OutboxCoverage = LONG) -> list[str]:
    """Return what is wrong with it, in one word each."""
    return [found.cause for found in find_faults(ORDER.order_id, order, rows, coverage)]


def order(**changes: object) -> OrderSeen:
    """The order with other values."""
    return msgspec.structs.replace(ORDER, **changes)


def test_a_healthy_order_is_well() -> None:
    """
    Placed and done, each told once, is no finding; nor is failed, redriven, done.
    """
    assert causes(ORDER, PLACED, DONE) == []
    last = msgspec.structs.replace(DONE, row_id=4, version=6, settled=121.0, transaction=4)
    assert causes(order(version=6), PLACED, FAILED, REDRIVEN, last) == []


@pytest.mark.parametrize("status", ["placed", "processing", "done", "failed", "cancelled"])
def test_an_order_without_its_first_event_is_lost(status: str) -> None:
    """
    Whatever became of it, nobody was told that it was placed.
    """
    assert "event_missing" in causes(order(status=status))


def test_an_end_that_was_not_told_is_lost() -> None:
    """
    An order that is done has an order.done.
    """
    assert causes(ORDER, PLACED) == ["event_missing"]


def test_what_lies_before_the_outbox_begins_is_not_judged() -> None:
    """
    Rows that were dropped with their partition are not missing.
    """
    long_after = OutboxCoverage(ORDER.placed + 1000)

    assert causes(ORDER, coverage=long_after) == []


def test_an_id_from_a_fast_clock_is_no_proof_of_youth() -> None:
    """
    An order whose id lies an hour ahead, and that was done before the outbox begins, had its event there.
    """
    begins = ORDER.placed + 1000
    assert ORDER.order_id.int >> 80 > begins * 1000

    assert causes(order(updated=begins - 1), coverage=OutboxCoverage(begins)) == []
    assert "event_missing" in causes(order(updated=begins + 1000), coverage=OutboxCoverage(begins))


def test_an_event_without_its_order_is_lost() -> None:
    """
    The reverse of an order without an event.
    """
    assert causes(None, PLACED) == ["order_missing"]


def test_an_order_that_was_erased_after_its_end_is_well() -> None:
    """
    `orders purge` leaves the events to the relay's retention.
    """
    assert causes(None, PLACED, DONE) == []


def test_sent_and_never_claimed_is_lost_once_it_is_late() -> None:
    """
    The finding tells since when it holds, so that whoever reports can wait.
    """
    found = find_faults(ORDER.order_id, order(status="placed", version=1, updated=89.0), [PLACED], LONG)

    assert [(each.cause, each.since, each.row_id) for each in found] == [("undelivered", 91.0, 1)]


def test_processing_without_a_worker_is_stuck() -> None:
    """
    Unless its worker lives, or its message is still in the outbox.
    """
    processing = order(status="processing", version=2)
    again = msgspec.structs.replace(PLACED, row_id=9, type=AGAIN, state="pending", settled=None)

    assert causes(processing, PLACED) == ["unworked"]
    assert causes(msgspec.structs.replace(processing, is_worked=True), PLACED) == []
    assert causes(processing, PLACED, again) == ["unsent"]


def test_a_blocked_row_is_stuck_with_the_brokers_reason() -> None:
    """
    What the relay noted about the key is what is reported.
    """
    blocked = msgspec.structs.replace(PLACED, state="parked", settled=None, blocked=True, waits="it is too large")

    found = find_faults(ORDER.order_id, order(status="placed", version=1), [blocked], LONG)

    assert [each.cause for each in found] == ["blocked"]
    assert "it is too large" in found[0].reason


def test_two_done_events_are_doubled() -> None:
    """
    Whatever their versions say.
    """
    for version in (3, 4):
        second = msgspec.structs.replace(DONE, row_id=3, version=version, settled=102.0)
        assert causes(ORDER, PLACED, DONE, second) == ["event_twice"]


def test_two_different_ends_are_doubled() -> None:
    """
    Failed and done, without a redrive between, are two ends.
    """
    failed = msgspec.structs.replace(FAILED, row_id=3, version=4, settled=102.0)

    assert "ended_twice" in causes(ORDER, PLACED, DONE, failed)


def test_events_in_the_wrong_order() -> None:
    """
    The end before the beginning, by rows or by versions.
    """
    first = msgspec.structs.replace(DONE, row_id=0)

    assert "versions_descend" in causes(ORDER, first, PLACED)


def test_an_event_that_was_sent_before_an_earlier_one() -> None:
    """
    By the times at which the rows were settled, in transactions of their own.
    """
    late = msgspec.structs.replace(PLACED, settled=200.0)

    assert causes(ORDER, late, DONE) == ["published_out_of_order"]
    assert causes(ORDER, msgspec.structs.replace(late, transaction=DONE.transaction), DONE) == []


def test_a_repeat_that_an_operator_asked_for_is_no_reordering() -> None:
    """
    A row that was requeued is sent after later ones, and has been sent before them too.
    """
    late = msgspec.structs.replace(PLACED, settled=200.0)

    assert causes(ORDER, late, DONE, coverage=OutboxCoverage(0.0, (150.0,))) == []


def test_a_status_that_went_back() -> None:
    """
    An order that was told to be done is not being processed.
    """
    found: list[Fault] = find_faults(
        ORDER.order_id, order(status="processing", version=4, is_worked=True), [PLACED, DONE], LONG
    )

    assert [each.cause for each in found] == ["status_went_back"]


def test_an_order_whose_retry_is_not_due_lacks_nothing() -> None:
    """
    It waits, since its last failure and until its retry is due; from then on it is stuck.
    """
    waits = order(status="processing", version=2, updated=95.0, retry_due=700.0)

    assert find_faults(ORDER.order_id, waits, [PLACED], LONG, now=699.0) == []
    assert retry_wait(waits, 699.0) == RetryWait(ORDER.order_id, 95.0, 700.0)
    assert [fault.cause for fault in find_faults(ORDER.order_id, waits, [PLACED], LONG, now=700.0)] == ["unworked"]
    assert retry_wait(waits, 700.0) is None


@pytest.mark.parametrize("changes", [{"status": "done"}, {"is_worked": True}, {"retry_due": None}])
def test_only_an_order_without_a_worker_waits_for_its_retry(changes: dict[str, object]) -> None:
    """
    An order that ended, that a worker has in hand, or that has no retry does not wait for one.
    """
    assert retry_wait(order(**{"status": "processing", "retry_due": 700.0} | changes), 0.0) is None
