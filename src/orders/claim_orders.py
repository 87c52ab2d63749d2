"""Take orders in hand: `placed -> processing`, committed before their handler starts.

Otherwise a cancel could win after the card was charged. Each claim raises `attempts`, the fence of the finish: whoever
claimed an order before and comes late finds another number, and changes nothing.
"""

from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from orders import orders_table
from orders.order import Order, Status

# A placed order, or one that this very worker has claimed before: a retry, or a claim whose outcome was unknown.
CLAIM: LiteralString = """
    WITH asked AS (
        SELECT * FROM unnest(%b::uuid[], %b::integer[]) AS t (order_id, failed) ORDER BY order_id
    )
    UPDATE orders o
    SET status = 'processing', version = o.version + (o.status = 'placed')::integer, worker = %b,
        attempts = o.attempts + 1, failures = o.failures + asked.failed, updated_at = clock_timestamp()
    FROM asked
    WHERE o.order_id = asked.order_id AND (o.status = 'placed' OR o.status = 'processing' AND o.worker = %b)
    RETURNING o.order_id, o.status, o.version, o.customer_id, o.currency, o.lines::text, o.total_minor, o.reference,
              o.attempts, o.failure_reason, o.created_at, o.updated_at, o.finished_at, o.failures
"""

# Whoever works an order holds the advisory lock of its worker number; it vanishes with the worker's connection.
LOOK: LiteralString = """
    SELECT o.order_id, o.status, o.worker, o.attempts,
           EXISTS (
               SELECT FROM pg_locks
               WHERE locktype = 'advisory'
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                 AND classid = 'orders'::regclass::oid AND objid = o.worker::oid AND objsubid = 2
           ) AS is_worked
    FROM orders o WHERE o.order_id = ANY(%b)
"""

# Only from the worker and the attempt that were looked at: somebody else may have been faster.
TAKE_OVER: LiteralString = """
    WITH asked AS (
        SELECT * FROM unnest(%b::uuid[], %b::integer[], %b::integer[]) AS t (order_id, worker, attempts)
        ORDER BY order_id
    )
    UPDATE orders o
    SET worker = %b, attempts = o.attempts + 1, updated_at = clock_timestamp()
    FROM asked
    WHERE o.order_id = asked.order_id AND o.status = 'processing'
      AND o.worker = asked.worker AND o.attempts = asked.attempts
    RETURNING o.order_id, o.status, o.version, o.customer_id, o.currency, o.lines::text, o.total_minor, o.reference,
              o.attempts, o.failure_reason, o.created_at, o.updated_at, o.finished_at, o.failures
"""


class Wanted(msgspec.Struct, frozen=True):
    """An order to claim; `failed` if its handler has just failed under the claim before."""

    order_id: UUID
    failed: bool = False


class Claimed(msgspec.Struct, frozen=True):
    """The order is ours, under the attempt number it carries."""

    order: Order
    failures: int


class Held(msgspec.Struct, frozen=True):
    """Another worker, which is alive, has it."""


class Settled(msgspec.Struct, frozen=True):
    """There is nothing left to do."""

    status: Status


class Unknown(msgspec.Struct, frozen=True):
    """There is no such order."""


Claim = Claimed | Held | Settled | Unknown


async def claim_orders(conn: AsyncConnection, worker: int, batch: Sequence[Wanted]) -> list[Claim]:
    """Claim the orders of a batch for a worker; each order stands in it once."""
    columns = [[wanted.order_id for wanted in batch], [int(wanted.failed) for wanted in batch]]
    cursor = await conn.execute(CLAIM, [*columns, worker, worker], prepare=True)
    claims: dict[UUID, Claim] = {row[0]: _claimed(row) for row in await cursor.fetchall()}

    left = [wanted.order_id for wanted in batch if wanted.order_id not in claims]
    if left:
        cursor = await conn.execute(LOOK, [left], prepare=True)
        seen = await cursor.fetchall()
        orphans = [
            (order_id, of, attempts) for order_id, status, of, attempts, is_worked in seen
            if status == "processing" and not is_worked
        ]  # fmt: skip
        for order_id, status, *_ in seen:
            claims[order_id] = Settled(status) if status not in {"placed", "processing"} else Held()
        if orphans:
            columns = [list(column) for column in zip(*orphans, strict=True)]
            cursor = await conn.execute(TAKE_OVER, [*columns, worker], prepare=True)
            claims.update({row[0]: _claimed(row) for row in await cursor.fetchall()})
    return [claims.get(wanted.order_id, Unknown()) for wanted in batch]


def _claimed(row: tuple[object, ...]) -> Claimed:
    return Claimed(orders_table.order_of(row[:-1]), failures=row[-1])  # type: ignore[arg-type]
