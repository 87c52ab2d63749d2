"""Every statement that reads an order, or changes nothing but an order."""

from collections.abc import Sequence
from datetime import datetime
from typing import LiteralString, NamedTuple
from uuid import UUID

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from orders.model.errors import OrderNotFound
from orders.model.order import Order, Status

# For connections that only read: each of our statements has an index to scan. A plan that was made while the table was
# small, and nobody had analyzed it, would else read the whole table long after it has grown.
BY_INDEX = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}

# What `order_of` makes an Order of: the first columns of every statement that reads one, of a table called `o`.
COLUMNS: LiteralString = """
           o.order_id, o.status, o.version, o.customer_id, o.currency, o.lines::text, o.total_minor, o.reference,
           o.attempts, o.failure_reason, o.created_at, o.updated_at, o.finished_at
"""

# What a purge that keeps the orders writes into each column that may tell of a person.
ANONYMOUS: LiteralString = "customer_id = 'erased', reference = NULL"

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
# is taken, and costs nothing to the others. The scan's own end stands in every row: where the next one goes on.
#
# The last sum bounds the bytes of a page: 100 orders of 1,000 lines each are no answer.
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
    """An order that a client asks for."""

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
    """What a step found; the next one goes on after `last`, which is None where the list has ended."""

    orders: list[Order]
    last: UUID | None
    is_full: bool  # of orders or of bytes


class StatusNow(msgspec.Struct, frozen=True):
    """What has become of an order."""

    order_id: UUID
    status: Status
    version: int
    failure_reason: str | None
    updated_at: datetime


async def read_many(conn: AsyncConnection, wanted: Sequence[OrderLookup]) -> list[Order | OrderNotFound]:
    """Return each order, or OrderNotFound in its place; another client's order is not there."""
    cursor = await conn.execute(READ_MANY, [[each.order_id for each in wanted]], prepare=True)
    found = {OrderLookup(row[-1], row[0]): order_of(row) for row in await cursor.fetchall()}
    return [found.get(each) or OrderNotFound() for each in wanted]


async def scan(conn: AsyncConnection, step: ScanStep) -> ScanPage:
    """Take a step down a list."""
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
    """Return those of the orders whose version is no longer the one given with it."""
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
