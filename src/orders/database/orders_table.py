"""The table `orders`: its columns, and the statements that only read orders."""

from collections.abc import Sequence
from datetime import datetime
from typing import LiteralString, NamedTuple
from uuid import UUID

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from orders.model.errors import OrderNotFound
from orders.model.order import Order, Status

# For connections that only read: each statement has an index to scan. Without these settings, a plan that was made
# while the table was small and not analyzed would read the whole table long after it has grown.
BY_INDEX = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}

# The columns that `order_of` needs. Every statement that reads an order calls the table `o` and selects them first.
COLUMNS: LiteralString = """
           o.order_id, o.status, o.version, o.customer_id, o.currency, o.lines::text, o.total_minor, o.reference,
           o.attempts, o.failure_reason, o.created_at, o.updated_at, o.finished_at
"""

# The columns that may identify a person, and the values that a purge writes into them if it keeps the orders.
ANONYMOUS: LiteralString = "customer_id = 'erased', reference = NULL, attempt_log = NULL"

COLUMNS_ARE_THERE: LiteralString = f"""
    SELECT {COLUMNS},
           o.client, o.failures, o.worker, o.event_id, o.redrives, o.placed_at
    FROM orders o LIMIT 0
"""

READ_MANY: LiteralString = f"""
    SELECT {COLUMNS}, o.client
    FROM orders o WHERE o.order_id = ANY(%b)
"""

# Scan an index from the cursor down, over at most `window` orders, and return those that match. One of the four ways
# is taken; the others cost nothing. Every row has the end of the scan, from which the next step continues.
#
# The sum bounds the bytes of a page: 100 orders of 1,000 lines each are too much for one answer.
SCAN: LiteralString = f"""
    WITH scanned AS MATERIALIZED (
        (SELECT order_id, client, status, customer_id, reference FROM orders
         WHERE %(way)b::text = 'all' AND order_id < %(after)b::uuid
         ORDER BY order_id DESC LIMIT %(window)b::integer)
        UNION ALL
        (SELECT order_id, client, status, customer_id, reference FROM orders
         WHERE %(way)b::text = 'client' AND client = %(client)b::text AND client <> '' AND order_id < %(after)b::uuid
         ORDER BY order_id DESC LIMIT %(window)b::integer)
        UNION ALL
        (SELECT order_id, client, status, customer_id, reference FROM orders
         WHERE %(way)b::text = 'customer' AND client = %(client)b::text AND customer_id = %(customer_id)b::text
           AND order_id < %(after)b::uuid
         ORDER BY order_id DESC LIMIT %(window)b::integer)
        UNION ALL
        (SELECT order_id, client, status, customer_id, reference FROM orders
         WHERE %(way)b::text = 'reference' AND client = %(client)b::text AND reference = %(reference)b::text
           AND order_id < %(after)b::uuid
         ORDER BY order_id DESC LIMIT %(window)b::integer)
    ), matching AS (
        SELECT order_id FROM scanned
        WHERE client = %(client)b::text
          AND (%(status)b::text IS NULL OR status = %(status)b::text)
          AND (%(customer_id)b::text IS NULL OR customer_id = %(customer_id)b::text)
          AND (%(reference)b::text IS NULL OR reference = %(reference)b::text)
        ORDER BY order_id DESC LIMIT %(wanted)b::integer
    ), page AS (
        SELECT {COLUMNS},
               row_number() OVER newest_first AS number,
               sum(coalesce(octet_length(o.lines::text), 0)) OVER newest_first AS bytes
        FROM matching JOIN orders o USING (order_id)
        WINDOW newest_first AS (ORDER BY o.order_id DESC)
    )
    SELECT {COLUMNS}, scan.rows, scan.last, scan.matching
    FROM (
        SELECT (SELECT count(*) FROM scanned) AS rows,
               (SELECT order_id FROM scanned ORDER BY order_id LIMIT 1) AS last,
               (SELECT count(*) FROM matching) AS matching
    ) AS scan LEFT JOIN page o ON number = 1 OR bytes <= %(bytes)b::integer
    ORDER BY o.order_id DESC
"""

CHANGED: LiteralString = """
    SELECT o.order_id, o.status, o.version, o.failure_reason, o.updated_at
    FROM unnest(%b::uuid[], %b::integer[]) AS seen (order_id, version) JOIN orders o USING (order_id)
    WHERE o.version > seen.version
"""


class OrderLookup(NamedTuple):
    """The look-up of an order for a client; '' is the anonymous client."""

    client: str
    order_id: UUID


class ScanStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step down the list of a client's orders: at most `wanted` matches from the next `window` orders."""

    client: str
    status: Status | None
    customer_id: str | None
    reference: str | None
    after: UUID
    wanted: int
    window: int
    bytes: int  # of lines


class ScanPage(msgspec.Struct, frozen=True):
    """The orders that a step found; the next step continues after `last`, which is None at the end of the list."""

    orders: list[Order]
    last: UUID | None
    is_full: bool  # of orders or of bytes


class StatusNow(msgspec.Struct, frozen=True):
    """The status of an order at this moment."""

    order_id: UUID
    status: Status
    version: int
    failure_reason: str | None
    updated_at: datetime


async def read_many(conn: AsyncConnection, lookups: Sequence[OrderLookup]) -> list[Order | OrderNotFound]:
    """Return each order, or OrderNotFound in its place, also for an order of another client."""
    cursor = await conn.execute(READ_MANY, [[lookup.order_id for lookup in lookups]], prepare=True)
    found = {OrderLookup(row[-1], row[0]): order_of(row) for row in await cursor.fetchall()}
    return [found.get(lookup) or OrderNotFound() for lookup in lookups]


async def scan(conn: AsyncConnection, step: ScanStep) -> ScanPage:
    """Take a step down a list, by the index that fits the filters best."""
    if step.reference is not None:
        way = "reference"
    elif step.customer_id is not None:
        way = "customer"
    else:
        way = "client" if step.client else "all"
    cursor = await conn.execute(SCAN, {"way": way, **msgspec.structs.asdict(step)}, prepare=True)
    rows = await cursor.fetchall()
    orders = [order_of(row) for row in rows if row[0] is not None]
    scanned, last, matching = rows[0][-3:]
    if len(orders) < matching or matching == step.wanted:  # the page is full
        return ScanPage(orders, orders[-1].order_id, is_full=True)
    return ScanPage(orders, last if scanned == step.window else None, is_full=False)


async def changed(conn: AsyncConnection, order_ids: list[UUID], versions: list[int]) -> list[StatusNow]:
    """Return the status of each order whose version is above the one that the caller saw.

    `order_ids` and `versions` have the same length, and belong together by position.
    """
    cursor = await conn.execute(CHANGED, [order_ids, versions], prepare=True)
    return [StatusNow(*row) for row in await cursor.fetchall()]


def order_of(row: TupleRow) -> Order:
    """Make an Order of a row that begins with COLUMNS; what follows them is the caller's."""
    (
        order_id, status, version, customer_id, currency, lines, total_minor, reference,
        attempts, failure_reason, created_at, updated_at, finished_at, *_,
    ) = row  # fmt: skip
    return Order(
        order_id=order_id,
        status=status,
        version=version,
        customer_id=customer_id,
        currency=currency,
        lines=msgspec.Raw(b"null" if lines is None else lines.encode()),
        total_minor=total_minor,
        reference=reference,
        attempts=attempts,
        failure_reason=failure_reason,
        created_at=created_at,
        updated_at=updated_at,
        finished_at=finished_at,
    )
