"""Claim orders: `placed -> processing`, committed before the handler starts.

Otherwise a cancel could succeed after the handler charged the card. Each claim raises `attempts`, which fences the
finish: a worker with an earlier claim finds another number, and changes nothing. An order is claimed only for the event
that it waits for; old and forged events change nothing.
"""

from collections.abc import Mapping, Sequence
from typing import LiteralString
from uuid import UUID

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from orders.database import attempt_log, orders_table, pg_arrays, worker_lock
from orders.database.row_locks import Busy
from orders.model.order import Order, Status
from orders.model.work_message import WorkMessage

NO_WORKER = 0  # `worker` of an order that waits for its retry, or was handed back

# Of an order that this worker claims once more: it never wrote how the attempt ended.
LOG_INTERRUPTED: LiteralString = """log_attempt(
            o.attempt_log, o.attempts, o.updated_at, 'interrupted', 'lock ' || o.worker, NULL, NULL, NULL
        )"""

# A placed order, or one that this very worker has claimed before, in a claim or a transaction with unknown outcome.
CLAIM: LiteralString = f"""
    WITH asked AS (
        SELECT * FROM unnest(%b::uuid[], %b::uuid[]) AS t (order_id, event_id) ORDER BY order_id
    )
    UPDATE orders o
    SET status = 'processing', version = o.version + (o.status = 'placed')::integer, worker = %b,
        attempts = o.attempts + 1, updated_at = clock_timestamp(),
        attempt_log = CASE WHEN o.status = 'placed' THEN o.attempt_log ELSE {LOG_INTERRUPTED} END
    FROM asked
    WHERE o.order_id = asked.order_id AND coalesce(o.event_id, asked.event_id) = asked.event_id
      AND (o.status = 'placed' OR o.status = 'processing' AND o.worker = %b)
    RETURNING {orders_table.COLUMNS}, o.failures
"""

# The same, without the orders whose rows another session has locked.
CLAIM_SKIPPING: LiteralString = f"""
    WITH asked AS (
        SELECT * FROM unnest(%b::uuid[], %b::uuid[]) AS t (order_id, event_id)
    ), unlocked AS MATERIALIZED (
        SELECT o.order_id FROM orders o JOIN asked USING (order_id)
        WHERE coalesce(o.event_id, asked.event_id) = asked.event_id
          AND (o.status = 'placed' OR o.status = 'processing' AND o.worker = %b)
        FOR NO KEY UPDATE OF o SKIP LOCKED
    )
    UPDATE orders o
    SET status = 'processing', version = o.version + (o.status = 'placed')::integer, worker = %b,
        attempts = o.attempts + 1, updated_at = clock_timestamp(),
        attempt_log = CASE WHEN o.status = 'placed' THEN o.attempt_log ELSE {LOG_INTERRUPTED} END
    FROM unlocked WHERE o.order_id = unlocked.order_id
    RETURNING {orders_table.COLUMNS}, o.failures
"""

# A worker holds the advisory lock of its number; the lock is released when its connection ends.
LOOK: LiteralString = f"""
    WITH alive AS MATERIALIZED (
        {worker_lock.ALIVE}
    )
    SELECT o.order_id, o.status, o.worker, o.attempts, o.event_id, o.version, o.redrives,
           o.worker IN (SELECT worker FROM alive) AS is_worked,
           EXISTS (SELECT FROM retries r WHERE r.order_id = o.order_id) AS is_postponed
    FROM orders o WHERE o.order_id = ANY(%b)
"""

# Only from the worker and the attempt that LOOK found: another worker may have been faster. Locked rows are skipped.
TAKE_OVER: LiteralString = f"""
    WITH asked AS (
        SELECT * FROM unnest(%b::uuid[], %b::integer[], %b::integer[]) AS t (order_id, worker, attempts)
    ), unlocked AS MATERIALIZED (
        SELECT o.order_id FROM orders o JOIN asked USING (order_id)
        WHERE o.status = 'processing' AND o.worker = asked.worker AND o.attempts = asked.attempts
        FOR NO KEY UPDATE OF o SKIP LOCKED
    )
    UPDATE orders o
    SET worker = %b, attempts = o.attempts + 1, updated_at = clock_timestamp(),
        attempt_log = CASE WHEN o.worker = 0 THEN o.attempt_log ELSE log_attempt(
            o.attempt_log, o.attempts, o.updated_at, 'vanished', 'lock ' || o.worker, NULL, NULL, NULL
        ) END
    FROM unlocked WHERE o.order_id = unlocked.order_id
    RETURNING {orders_table.COLUMNS}, o.failures
"""

# A claim on a locked row stays: another worker takes it over as that of a dead worker.
HAND_BACK: LiteralString = """
    WITH unlocked AS MATERIALIZED (
        SELECT order_id FROM orders WHERE order_id = ANY(%b) AND status = 'processing' AND worker = %b
        FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE orders o
    SET worker = 0, updated_at = clock_timestamp(),
        attempt_log = log_attempt(o.attempt_log, o.attempts, o.updated_at, 'handed back', %b, NULL, NULL, NULL)
    FROM unlocked WHERE o.order_id = unlocked.order_id
"""

# The claims that still stand: of an order that was skipped, and not ended or taken over.
STANDING: LiteralString = """
    SELECT o.order_id, o.worker
    FROM orders o JOIN unnest(%b::uuid[], %b::bigint[]) AS asked (order_id, attempts) USING (order_id)
    WHERE o.status = 'processing' AND o.attempts = asked.attempts
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


Claim = Claimed | Busy | Held | Postponed | Settled | Unknown | Forged


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


def claim_of(seen: Seen, message: WorkMessage, worker: int) -> Claim | Orphaned:
    """Decide why `worker` could not claim an order for an event, and whether it is to be taken over."""
    if seen.event_id is not None and seen.event_id != message.event_id:
        # Only a redriven order has had another event before; one of an earlier version is such an event.
        return Settled(seen.status) if seen.redrives and message.version < seen.version else Forged()
    if seen.status not in {"placed", "processing"}:
        return Settled(seen.status)
    if seen.is_postponed:
        return Postponed()
    if seen.status == "placed" or seen.worker == worker:
        return Busy(message.order_id)  # the claim skipped it, or it became `placed` a moment ago
    if seen.worker is None or seen.is_worked:
        return Held()
    return Orphaned(seen.worker, seen.attempts)


async def claim_orders(
    conn: AsyncConnection, worker: int, batch: Sequence[WorkMessage], *, skip_locked: bool = True
) -> list[Claim]:
    """Claim orders for a worker, by its number; return the outcomes in the batch's order. Each order may occur once.

    An order that a worker claimed which is gone is taken over, as a suspect. Harmless to repeat by the same worker.
    With `skip_locked` the outcome of an order whose row is locked is Busy; without, which costs less, the claim waits
    for the row, or raises psycopg.errors.LockNotAvailable at the session's lock_timeout and claims nothing.
    """
    asked = [
        pg_arrays.uuids([message.order_id for message in batch]),
        pg_arrays.uuids([message.event_id for message in batch]),
    ]
    claim_statement = CLAIM_SKIPPING if skip_locked else CLAIM
    cursor = await conn.execute(claim_statement, [*asked, worker, worker], prepare=True)
    claims: dict[UUID, Claim] = {row[0]: _claimed(row) for row in await cursor.fetchall()}

    unclaimed = {message.order_id: message for message in batch if message.order_id not in claims}
    if unclaimed:
        orphans: dict[UUID, Orphaned] = {}
        for order_id, found in (await _look(conn, unclaimed, worker)).items():
            if isinstance(found, Orphaned):
                orphans[order_id] = found
            else:
                claims[order_id] = found
        if orphans:
            workers, attempts = [o.worker for o in orphans.values()], [o.attempts for o in orphans.values()]
            cursor = await conn.execute(TAKE_OVER, [list(orphans), workers, attempts, worker], prepare=True)
            for row in await cursor.fetchall():
                claims[row[0]] = _claimed(row, suspect=orphans[row[0]].worker != NO_WORKER)
            if missed := {order_id: unclaimed[order_id] for order_id in orphans if order_id not in claims}:
                for order_id, found in (await _look(conn, missed, worker)).items():
                    is_still_orphaned = found == orphans[order_id]
                    claims[order_id] = Busy(order_id) if is_still_orphaned else _not_orphaned(found)
    return [claims.get(message.order_id, Unknown()) for message in batch]


async def standing(conn: AsyncConnection, claims: Sequence[Claimed]) -> dict[UUID, int]:
    """Return the worker (or NO_WORKER) of each of these orders that is still `processing` under its claim.

    Of the orders that a statement with SKIP LOCKED left out, these are locked; the others have ended, or belong to
    another claim.
    """
    order_ids, attempts = [c.order.order_id for c in claims], [c.order.attempts for c in claims]
    cursor = await conn.execute(STANDING, [order_ids, attempts], prepare=True)
    return dict(await cursor.fetchall())


async def hand_back(conn: AsyncConnection, worker: int, order_ids: Sequence[UUID]) -> int:
    """Release the claims of this worker on these orders; another worker may then claim them, not as suspects.

    Returns how many of them this worker still held.
    """
    return (await conn.execute(HAND_BACK, [list(order_ids), worker, attempt_log.own_name()])).rowcount


async def _look(
    conn: AsyncConnection, messages: Mapping[UUID, WorkMessage], worker: int
) -> dict[UUID, Claim | Orphaned]:
    """Return why `worker` could not claim these orders; a missing one does not exist."""
    cursor = await conn.execute(LOOK, [list(messages)], prepare=True)
    return {row[0]: claim_of(Seen(*row[1:]), messages[row[0]], worker) for row in await cursor.fetchall()}


def _not_orphaned(found: Claim | Orphaned) -> Claim:
    return Held() if isinstance(found, Orphaned) else found  # orphaned again by a worker that was faster


def _claimed(row: TupleRow, *, suspect: bool = False) -> Claimed:
    return Claimed(orders_table.order_of(row), failures=row[-1], suspect=suspect)
