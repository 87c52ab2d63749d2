"""The scratch database gives each order back with its outbox rows, and remembers which ones to read again."""

from uuid import UUID

import msgspec

from orders.model.ids import uuid7
from orders.tools.reconcile.queries import OrderRow, OutboxRow
from orders.tools.reconcile.rules import EventSeen, OrderSeen
from orders.tools.reconcile.scratch import ScratchDatabase

FIRST, SECOND, THIRD = sorted(uuid7() for _ in range(3))
PLACED = EventSeen(row_id=7, type="order.placed", version=1, state="sent", created=90.0, settled=91.0, transaction=5)
DONE = EventSeen(row_id=8, type="order.done", version=None, state="pending", created=99.0, settled=None, waits="why")


def order_row(order_id: UUID, status: str = "placed") -> OrderRow:
    return OrderRow(order_id=order_id, status=status, version=1, updated=90.0, worker=None)


def seen(order_id: UUID) -> OrderSeen:
    return OrderSeen(order_id=order_id, status="placed", version=1, updated=90.0)


def test_a_history_is_an_order_with_its_rows() -> None:
    """
    Orders without rows and rows without an order are there, too; rows come back as they were, in the order of ids.
    """
    with ScratchDatabase() as scratch:
        scratch.add_orders([order_row(SECOND), order_row(FIRST)])
        scratch.add_rows([OutboxRow(str(THIRD), PLACED), OutboxRow(str(FIRST), DONE), OutboxRow(str(FIRST), PLACED)])

        assert list(scratch.histories()) == [
            (FIRST, seen(FIRST), [PLACED, DONE]),
            (SECOND, seen(SECOND), []),
            (THIRD, None, [PLACED]),
        ]


def test_a_later_look_replaces_the_earlier_one() -> None:
    """
    A row is replaced by its newer copy, an order by what it is now, and an order that is gone by nothing.
    """
    sent = msgspec.structs.replace(DONE, state="sent", settled=100.0, blocked=True)
    worked = OrderSeen(order_id=FIRST, status="processing", version=2, updated=95.0, is_worked=True, retry_due=120.0)
    with ScratchDatabase() as scratch:
        scratch.add_orders([order_row(FIRST), order_row(SECOND)])
        scratch.add_rows([OutboxRow(str(FIRST), DONE)])
        scratch.add_rows([OutboxRow(str(FIRST), sent)])
        scratch.renew_orders([FIRST, SECOND], {FIRST: worked})

        assert list(scratch.histories()) == [(FIRST, worked, [sent])]


def test_suspects_are_chosen_anew_each_time() -> None:
    """
    The new suspects may come out of the histories of the old ones; only theirs are given back then.
    """
    with ScratchDatabase() as scratch:
        scratch.add_orders([order_row(FIRST), order_row(SECOND), order_row(THIRD)])
        scratch.add_rows([OutboxRow(str(SECOND), PLACED), OutboxRow(str(THIRD), DONE)])

        assert scratch.suspect([THIRD, SECOND, THIRD]) == 2
        assert list(scratch.suspects()) == [[SECOND, THIRD]]
        assert list(scratch.rows_of_suspects()) == [[7, 8]]

        assert scratch.suspect(h.order_id for h in scratch.histories(of_suspects=True) if h.rows == [DONE]) == 1
        assert [history.order_id for history in scratch.histories(of_suspects=True)] == [THIRD]
        assert scratch.suspect([]) == 0
        assert list(scratch.suspects()) == []
