"""Claim orders: `placed -> processing`, committed before the handler starts.

Otherwise a cancel could succeed after the handler charged the card. Each claim raises `attempts`, which fences the
finish: a worker with an earlier claim finds another number, and changes nothing. An order is claimed only for the event
that it waits for; old and forged events change nothing.
"""

from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from orders.database import orders_table, pg_arrays
from orders.model.order import Order, Status
from orders.model.work_message import WorkMessage

NO_WORKER = 0  # `worker` of an order that waits for its retry, or was handed back

# A placed order, or one that this very worker has claimed before, in a claim or a transaction with unknown outcome.
CLAIM: LiteralString = f"""
    WITH asked AS (
        SELECT * FROM unnest(%b::uuid[], %b::uuid[]) AS t (order_id, event_id) ORDER BY order_id
    )
    UPDATE orders o
    SET status = 'processing', version = o.version + (o.status = 'placed')::integer, worker = %b,
        attempts = o.attempts + 1, updated_at = clock_timestamp()
    FROM asked
    WHERE o.order_id = asked.order_id AND coalesce(o.event_id, asked.event_id) = asked.event_id
      AND (o.status = 'placed' OR o.status = 'processing' AND o.worker = %b)
    RETURNING {orders_table.COLUMNS}, o.failures
"""

# A worker holds the advisory lock of its number; the lock is released when its connection ends.
LOOK: LiteralString = """
    WITH alive AS MATERIALIZED (
        SELECT objid::bigint AS worker FROM pg_locks
        WHERE locktype = 'advisory'
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND classid = 'orders'::regclass::oid AND objsubid = 2
    )
    SELECT o.order_id, o.status, o.worker, o.attempts, o.event_id, o.version, o.redrives,
           o.worker IN (SELECT worker FROM alive) AS is_worked,
           EXISTS (SELECT FROM retries r WHERE r.order_id = o.order_id) AS is_postponed
    FROM orders o WHERE o.order_id = ANY(%b)
"""

# Only from the worker and the attempt that LOOK found: another worker may have been faster.
TAKE_OVER: LiteralString = f"""
    WITH asked AS (
        SELECT * FROM unnest(%b::uuid[], %b::integer[], %b::integer[]) AS t (order_id, worker, attempts)
        ORDER BY order_id
    )
    UPDATE orders o
    SET worker = %b, attempts = o.attempts + 1, updated_at = clock_timestamp()
    FROM asked
    WHERE o.order_id = asked.order_id AND o.status = 'processing'
      AND o.worker = asked.worker AND o.attempts = asked.attempts
    RETURNING {orders_table.COLUMNS}, o.failures
"""

HAND_BACK: LiteralString = """
    UPDATE orders SET worker = 0, updated_at = clock_timestamp()
    WHERE order_id = ANY(%b) AND status = 'processing' AND worker = %b
"""


class Claimed(msgspec.Struct, frozen=True):
    """The order is ours, under the attempt number it carries."""

    order: Order
    failures: int
    suspect: bool = False  # a worker that is gone had claimed it: its handler may have ended that worker


class Held(msgspec.Struct, frozen=True):
    """A worker that is alive has it."""


class Postponed(msgspec.Struct, frozen=True):
    """It waits for its retry, which the table `retries` sends when it is due."""


class Settled(msgspec.Struct, frozen=True):
    """The event needs no work: the order has ended, or waits for a later event."""

    status: Status


class Unknown(msgspec.Struct, frozen=True):
    """There is no such order."""


class Forged(msgspec.Struct, frozen=True):
    """The order does not wait for this event, and never did."""


Claim = Claimed | Held | Postponed | Settled | Unknown | Forged


class Orphaned(msgspec.Struct, frozen=True):
    """Its worker is gone: it can be taken over from this claim, unless another worker is faster."""

    worker: int
    attempts: int


class Seen(msgspec.Struct, frozen=True):
    """An order that could not be claimed, as LOOK finds it."""

    status: Status
    worker: int | None
    attempts: int
    event_id: UUID | None  # the event that it waits for; None if the order is older than this column
    version: int
    redrives: int
    is_worked: bool | None  # by a worker that is alive
    is_postponed: bool


def claim_of(seen: Seen, message: WorkMessage) -> Claim | Orphaned:
    """Decide why an order could not be claimed for an event, and whether it is to be taken over."""
    if seen.event_id is not None and seen.event_id != message.event_id:
        # Only a redriven order has had another event before; one of an earlier version is such an event.
        return Settled(seen.status) if seen.redrives and message.version < seen.version else Forged()
    if seen.status not in {"placed", "processing"}:
        return Settled(seen.status)
    if seen.is_postponed:
        return Postponed()
    if seen.worker is None or seen.is_worked:
        return Held()  # without a worker it became `placed` a moment ago: the next claim finds it
    return Orphaned(seen.worker, seen.attempts)


async def claim_orders(conn: AsyncConnection, worker: int, batch: Sequence[WorkMessage]) -> list[Claim]:
    """Claim orders for a worker, by its number; return the outcomes in the batch's order. Each order may occur once.

    An order that a worker claimed which is gone is taken over, as a suspect. Harmless to repeat by the same worker.
    """
    asked = [
        pg_arrays.uuids([message.order_id for message in batch]),
        pg_arrays.uuids([message.event_id for message in batch]),
    ]
    cursor = await conn.execute(CLAIM, [*asked, worker, worker], prepare=True)
    claims: dict[UUID, Claim] = {row[0]: _claimed(row) for row in await cursor.fetchall()}

    unclaimed = {message.order_id: message for message in batch if message.order_id not in claims}
    if unclaimed:
        cursor = await conn.execute(LOOK, [list(unclaimed)], prepare=True)
        orphans: dict[UUID, Orphaned] = {}
        for order_id, *found in await cursor.fetchall():
            match claim_of(Seen(*found), unclaimed[order_id]):
                case Orphaned() as orphan:
                    orphans[order_id] = orphan
                    claims[order_id] = Held()  # unless this worker takes it over below
                case claim:
                    claims[order_id] = claim
        if orphans:
            workers, attempts = [o.worker for o in orphans.values()], [o.attempts for o in orphans.values()]
            cursor = await conn.execute(TAKE_OVER, [list(orphans), workers, attempts, worker], prepare=True)
            for row in await cursor.fetchall():
                claims[row[0]] = _claimed(row, suspect=orphans[row[0]].worker != NO_WORKER)
    return [claims.get(message.order_id, Unknown()) for message in batch]


async def hand_back(conn: AsyncConnection, worker: int, order_ids: Sequence[UUID]) -> int:
    """Release the claims of this worker on these orders; another worker may then claim them, not as suspects.

    Returns how many of them this worker still held.
    """
    return (await conn.execute(HAND_BACK, [list(order_ids), worker])).rowcount


def _claimed(row: TupleRow, *, suspect: bool = False) -> Claimed:
    return Claimed(orders_table.order_of(row), failures=row[-1], suspect=suspect)
