"""What `orders reconcile` reads of the database: short statements over bounded ranges."""

from collections.abc import Sequence
from typing import Any, LiteralString
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from orders.tools.reconcile.rules import AGAIN, EventSeen, OrderSeen

ORDERS: LiteralString = """
    SELECT order_id, status, version, extract(epoch FROM coalesce(finished_at, updated_at))::float8, worker
    FROM orders WHERE order_id > %b AND order_id < %b ORDER BY order_id LIMIT %b
"""

THESE_ORDERS: LiteralString = """
    SELECT order_id, status, version, extract(epoch FROM coalesce(finished_at, updated_at))::float8, worker
    FROM orders WHERE order_id = ANY(%b)
"""

# Bounded by ids, not by a LIMIT: however few of the rows are of these keys, a page is a page.
ROWS: LiteralString = """
    SELECT key, id, exchange, routing_key, state, extract(epoch FROM created_at)::float8,
           extract(epoch FROM settled_at)::float8, xmin::text::bigint, substring(body FROM 1 FOR 4096)
    FROM outbox
    WHERE id > %b AND id <= %b AND key COLLATE "C" >= %b AND key COLLATE "C" < %b
    ORDER BY id
"""

THESE_ROWS: LiteralString = """
    SELECT key, id, exchange, routing_key, state, extract(epoch FROM created_at)::float8,
           extract(epoch FROM settled_at)::float8, xmin::text::bigint, substring(body FROM 1 FOR 4096)
    FROM outbox WHERE id = ANY(%b) AND id >= %b AND id <= %b ORDER BY id
"""

WAITING: LiteralString = "SELECT key, blocked, reason FROM outbox_waiting WHERE key = ANY(%b)"

# Whoever works an order holds the advisory lock of its worker number.
WORKERS: LiteralString = """
    SELECT objid::bigint FROM pg_locks
    WHERE locktype = 'advisory' AND classid = 'orders'::regclass::oid AND objsubid = 2 AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

RETRIES_ARE_THERE: LiteralString = "SELECT to_regclass('retries') IS NOT NULL"

RETRIES: LiteralString = """
    SELECT order_id, extract(epoch FROM due_at)::float8 FROM retries WHERE order_id = ANY(%b)
"""

REQUEUES: LiteralString = """
    SELECT extract(epoch FROM at)::float8 FROM outbox_audit WHERE command = 'requeue' ORDER BY id
"""

# The lowest id that a partition can hold: above 1, older partitions have been dropped.
LOWEST_ID: LiteralString = """
    SELECT coalesce(min(substring(pg_get_expr(c.relpartbound, c.oid) FROM 'FROM [(]''([0-9]+)''[)]')::bigint), 1)
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'outbox'::regclass
"""

LAST_ID: LiteralString = "SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM outbox_id_seq"

TIME_AT: LiteralString = """
    SELECT id, extract(epoch FROM created_at)::float8 FROM outbox WHERE id >= %b ORDER BY id LIMIT 1
"""

CLOCK: LiteralString = "SELECT extract(epoch FROM clock_timestamp())::float8"

# Said after connecting: a session that begins read-only is not let in where writes are asked for.
READ_ONLY: LiteralString = "SET default_transaction_read_only = on"


class _Data(msgspec.Struct):
    version: int


class _Envelope(msgspec.Struct):
    data: _Data


_open = msgspec.json.Decoder(_Envelope).decode


class OrderRow(msgspec.Struct, frozen=True):
    """An order's row as it was read; whether its worker lives is asked later, and only of the doubtful."""

    order_id: UUID
    status: str
    version: int
    updated: float
    worker: int | None


Row = tuple[str, EventSeen]  # the key, and the row


async def orders(conn: AsyncConnection, above: UUID, below: UUID, limit: int) -> list[OrderRow]:
    """Return the next orders by id."""
    cursor = await conn.execute(ORDERS, [above, below, limit], prepare=True)
    return [OrderRow(*row) for row in await cursor.fetchall()]


async def these_orders(conn: AsyncConnection, order_ids: Sequence[UUID]) -> dict[UUID, OrderSeen]:
    """Return these orders as they are now, with the life of their workers and their retries."""
    workers = {row[0] for row in await (await conn.execute(WORKERS)).fetchall()}
    found = [OrderRow(*row) for row in await (await conn.execute(THESE_ORDERS, [list(order_ids)])).fetchall()]
    due: dict[UUID, float] = {}
    if await _value(conn, RETRIES_ARE_THERE):
        due = dict(await (await conn.execute(RETRIES, [list(order_ids)])).fetchall())
    return {
        row.order_id: OrderSeen(
            order_id=row.order_id,
            status=row.status,  # type: ignore[arg-type]  # a constraint holds it to these
            version=row.version,
            updated=row.updated,
            is_worked=row.worker in workers,
            retry_due=due.get(row.order_id),
        )
        for row in found
    }


async def rows(conn: AsyncConnection, above: int, upto: int, first_key: str, below_key: str) -> list[Row]:
    """Return the outbox rows of these ids whose keys lie in the range."""
    cursor = await conn.execute(ROWS, [above, upto, first_key, below_key], prepare=True)
    return [_row(row) for row in await cursor.fetchall()]


async def these_rows(conn: AsyncConnection, ids: Sequence[int]) -> list[Row]:
    """Return these outbox rows as they are now, with why their keys wait."""
    if not ids:
        return []
    found = await (await conn.execute(THESE_ROWS, [list(ids), min(ids), max(ids)])).fetchall()
    keys = sorted({row[0] for row in found})
    waiting = {row[0]: row[1:] for row in await (await conn.execute(WAITING, [keys])).fetchall()}
    return [_row(row, *waiting.get(row[0], (False, ""))) for row in found]


async def requeues(conn: AsyncConnection) -> tuple[float, ...]:
    """Return when operators had rows sent again."""
    return tuple(row[0] for row in await (await conn.execute(REQUEUES)).fetchall())


async def clock(conn: AsyncConnection) -> float:
    """Return the server's time."""
    return float(await _value(conn, CLOCK))


async def first_and_last_id(conn: AsyncConnection, since: float | None) -> tuple[int, int]:
    """Return ids between which all rows since then lie, found by halving: nothing is indexed by time."""
    low, last = int(await _value(conn, LOWEST_ID)) - 1, int(await _value(conn, LAST_ID))
    if since is None:
        return low, last
    high, above = last, low
    while high - low > 1:
        middle = (low + high) // 2
        found = await (await conn.execute(TIME_AT, [middle])).fetchone()
        if found is None or found[1] >= since:
            high = middle
        else:
            low = above = middle
    return above, last


async def coverage_start(conn: AsyncConnection) -> float:
    """Return since when the outbox has every row; 0 while no partition of it was ever dropped."""
    lowest = int(await _value(conn, LOWEST_ID))
    if lowest == 1:
        return 0.0
    found = await (await conn.execute(TIME_AT, [lowest])).fetchone()
    return float(found[1]) if found is not None else await clock(conn)


async def read_only(conn: AsyncConnection) -> None:
    """Let the session write nothing from now on."""
    await conn.execute(READ_ONLY)


def _row(row: tuple[object, ...], blocked: object = False, waits: object = "") -> Row:
    key, row_id, exchange, routing_key, state, created, settled, transaction, body = row
    try:
        version: int | None = _open(body).data.version  # type: ignore[arg-type]
    except msgspec.DecodeError:
        version = None
    return str(key), EventSeen(
        row_id=row_id,  # type: ignore[arg-type]
        type=str(routing_key) if exchange else AGAIN,
        version=version,
        state=str(state),
        created=created,  # type: ignore[arg-type]
        settled=settled,  # type: ignore[arg-type]
        transaction=transaction,  # type: ignore[arg-type]
        blocked=bool(blocked),
        waits=str(waits),
    )


async def _value(conn: AsyncConnection, statement: LiteralString) -> Any:
    row = await (await conn.execute(statement)).fetchone()
    assert row is not None
    return row[0]
