"""Decide what is wrong with an order, from its row and its outbox rows alone. No I/O."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal
from uuid import UUID

import msgspec

from orders.model.ids import seconds_of
from orders.model.order import TERMINAL, Status

FaultKind = Literal["lost", "stuck", "doubled", "out_of_order"]
Cause = Literal[
    "order_missing",  # events of an order that does not exist
    "event_missing",  # the outbox has no event of the order, or of its end
    "undelivered",  # sent, and never claimed by a worker
    "skipped",  # an operator skipped its message
    "unsent",  # its event is still pending
    "blocked",  # its event is rejected by the broker: an operator decides
    "unworked",  # its worker is gone, and no message is left for another
    "event_twice",
    "ended_twice",
    "versions_descend",  # in the outbox itself
    "published_out_of_order",
    "status_went_back",
]

PLACED = "order.placed"
REQUIRED = frozenset({PLACED, "order.redriven"})  # the messages that ask a worker for the work
ENDS = frozenset({"order.done", "order.failed", "order.cancelled"})
ONCE = frozenset({PLACED, "order.done", "order.cancelled"})  # `failed` and `redriven` may come again
AGAIN = "again"  # not an event: a message that was sent once more, straight to the work queue
SETTLED = frozenset({"sent", "unrouted", "skipped"})

# How much later than an order's id its first event may be written: the wait for the database, and clock differences.
CLOCKS_SECONDS = 60.0


class OrderSeen(msgspec.Struct, frozen=True, kw_only=True):
    """An order's row. Times are seconds since 1970; `updated` is the time of the end, if the order has ended."""

    order_id: UUID
    status: Status
    version: int
    updated: float
    is_worked: bool = False  # its worker is alive
    retry_due: float | None = None  # when its retry is due, if it waits for one

    @property
    def placed(self) -> float:
        """The time in its id, a UUIDv7; not later than `updated`, whatever the clock of the api said."""
        return min(seconds_of(self.order_id), self.updated)


class EventSeen(msgspec.Struct, frozen=True, kw_only=True):
    """An outbox row of an order. `transaction` wrote its state; `waits` is the reason why its key waits, or empty."""

    row_id: int
    type: str
    version: int | None
    state: str
    created: float
    settled: float | None
    transaction: int = 0
    blocked: bool = False
    waits: str = ""


class RetryWait(msgspec.Struct, frozen=True):
    """An order that waits for its retry: since its last failure, until its message is due; seconds since 1970."""

    order_id: UUID
    since: float
    until: float


class OutboxCoverage(msgspec.Struct, frozen=True):
    """Since when the outbox has every row, and when operators requeued rows; seconds since 1970."""

    since: float
    requeues: tuple[float, ...] = ()

    def explains(self, after: float, before: float) -> bool:
        """Return whether rows were requeued between two times: then an earlier event may follow a later one."""
        return any(after <= requeued_at <= before for requeued_at in self.requeues)


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A fault of one order. Sending the message of the outbox row `row_id` again would repair it."""

    kind: FaultKind
    cause: Cause
    order_id: UUID
    reason: str
    row_id: int | None = None
    version: int = 0
    since: float | None = None  # true since then, and a fault only if that is long ago; None: a fault at any age


def find_faults(
    order_id: UUID,
    order: OrderSeen | None,
    rows: Sequence[EventSeen],
    coverage: OutboxCoverage,
    now: float = float("inf"),
) -> list[Fault]:
    """Return the faults of an order, from its row (None: it has none) and its outbox rows in the order of their ids.

    An order whose retry is due after `now`, in seconds since 1970, lacks no message.
    """
    if order is None and rows[-1].type in ENDS:
        return []  # it ended and was erased by `orders purge`; the relay's retention removes its events
    if order is None:
        names = ", ".join(f"row {row.row_id} {row.type}" for row in rows[:3])
        return [
            Fault(kind="lost", cause="order_missing", order_id=order_id, reason=f"no such order, but events: {names}")
        ]
    return [
        *_missing(order, rows, coverage),
        *_doubled(order, rows),
        *_out_of_order(order, rows, coverage),
        *_on_its_way(order, rows, now),
    ]


def retry_wait(order: OrderSeen | None, now: float) -> RetryWait | None:
    """Return until when an order waits for its retry; None if it does not wait, or its retry is due at `now`."""
    if order is None or order.status != "processing" or order.is_worked:
        return None
    if order.retry_due is None or order.retry_due <= now:
        return None
    return RetryWait(order.order_id, order.updated, order.retry_due)


def _missing(order: OrderSeen, rows: Sequence[EventSeen], coverage: OutboxCoverage) -> Iterator[Fault]:
    types = {row.type for row in rows}
    expected = [(PLACED, order.placed)]
    if order.status in TERMINAL:
        expected.append((f"order.{order.status}", order.updated))
    for type_, moment in expected:
        if type_ not in types and moment > coverage.since + CLOCKS_SECONDS:
            reason = f"it is {order.status}, and the outbox has no {type_} of it"
            yield Fault(
                kind="lost", cause="event_missing", order_id=order.order_id, version=order.version, reason=reason
            )


def _doubled(order: OrderSeen, rows: Sequence[EventSeen]) -> Iterator[Fault]:
    events = [row for row in rows if row.type != AGAIN]
    found = False
    for type_, many in Counter(row.type for row in events).items():
        versions = [row.version for row in events if row.type == type_ and row.version is not None]
        if many > 1 and (type_ in ONCE or len(set(versions)) < len(versions)):
            found = True
            ids = ", ".join(str(row.row_id) for row in events if row.type == type_)
            yield Fault(
                kind="doubled", cause="event_twice", order_id=order.order_id, reason=f"{many} {type_}: rows {ids}"
            )
    ends = [row for row in events if row.type in ENDS]
    if not found and len(ends) > 1 + sum(row.type == "order.redriven" for row in events):
        names = ", ".join(f"{row.type} (row {row.row_id})" for row in ends)
        yield Fault(kind="doubled", cause="ended_twice", order_id=order.order_id, reason=f"it ended twice: {names}")


def _out_of_order(order: OrderSeen, rows: Sequence[EventSeen], coverage: OutboxCoverage) -> Iterator[Fault]:
    events = [row for row in rows if row.type != AGAIN]
    for earlier, later in pairwise(events):
        if _descends(earlier, later):
            yield Fault(
                kind="out_of_order", cause="versions_descend", order_id=order.order_id,
                reason=f"{later.type} (row {later.row_id}) comes behind {earlier.type} (row {earlier.row_id})",
            )  # fmt: skip
            break
    for earlier, later in pairwise(events):
        if _overtakes(earlier, later, coverage):
            yield Fault(
                kind="out_of_order", cause="published_out_of_order", order_id=order.order_id,
                reason=f"{later.type} (row {later.row_id}) was {later.state} before {earlier.type} "
                       f"(row {earlier.row_id}), which is {earlier.state}",
            )  # fmt: skip
            break
    if order.status not in TERMINAL and events and events[-1].type in ENDS:
        yield Fault(
            kind="out_of_order", cause="status_went_back", order_id=order.order_id, since=events[-1].created,
            reason=f"it is {order.status}, and its last event is {events[-1].type} (row {events[-1].row_id})",
        )  # fmt: skip


def _descends(earlier: EventSeen, later: EventSeen) -> bool:
    if later.type == PLACED and earlier.type != PLACED:
        return True
    return earlier.version is not None and later.version is not None and later.version < earlier.version


def _overtakes(earlier: EventSeen, later: EventSeen, coverage: OutboxCoverage) -> bool:
    """Return whether `later` was settled first. Times that one transaction wrote are its own, not the broker's."""
    if later.settled is None or (earlier.transaction == later.transaction and earlier.settled is not None):
        return False
    until = float("inf") if earlier.settled is None else earlier.settled
    return until > later.settled and not coverage.explains(later.settled, until)


def _on_its_way(order: OrderSeen, rows: Sequence[EventSeen], now: float) -> Iterator[Fault]:
    unsent = next((row for row in rows if row.state not in SETTLED), None)
    if unsent is not None:
        waits = f": {unsent.waits}" if unsent.waits else ""
        yield Fault(
            kind="stuck", cause="blocked" if unsent.blocked else "unsent", order_id=order.order_id,
            since=unsent.created, reason=f"{unsent.type} (row {unsent.row_id}) is {unsent.state}{waits}",
        )  # fmt: skip
        return
    message = next((row for row in reversed(rows) if row.type in REQUIRED or row.type == AGAIN), None)
    if message is None:
        return
    if message.state == "skipped" and order.status == "placed":
        yield Fault(
            kind="lost", cause="skipped", order_id=order.order_id, row_id=message.row_id, version=order.version,
            reason=f"it is placed, and an operator skipped {message.type} (row {message.row_id})",
        )  # fmt: skip
    elif order.status == "placed":
        yield Fault(
            kind="lost", cause="undelivered", order_id=order.order_id, row_id=message.row_id, version=order.version,
            since=max(message.settled or 0.0, order.updated),
            reason=f"{message.type} (row {message.row_id}) was sent, and no worker ever claimed the order",
        )  # fmt: skip
    elif order.status == "processing" and not order.is_worked and retry_wait(order, now) is None:
        since = order.updated if order.retry_due is None else order.retry_due
        yield Fault(
            kind="stuck", cause="unworked", order_id=order.order_id, row_id=message.row_id, version=order.version,
            since=max(message.settled or 0.0, since),
            reason="it is processing, its worker is gone, and no message has brought it to another",
        )  # fmt: skip
