"""Every statement of `orders reconcile` on PostgreSQL. They only read, each a bounded range.

Times are seconds since 1970, by the server's clock.
"""

from collections.abc import Sequence
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from orders.database import worker_lock
from orders.tools.reconcile.rules import AGAIN, EventSeen, OrderSeen

ORDER_COLUMNS: LiteralString = """
    order_id, status, version, extract(epoch FROM coalesce(finished_at, updated_at))::float8, worker
"""

ORDERS: LiteralString = f"""
    SELECT {ORDER_COLUMNS} FROM orders WHERE order_id > %b AND order_id < %b ORDER BY order_id LIMIT %b
"""

THESE_ORDERS: LiteralString = f"SELECT {ORDER_COLUMNS} FROM orders WHERE order_id = ANY(%b)"

ROW_COLUMNS: LiteralString = """
    key, id, exchange, routing_key, state, extract(epoch FROM created_at)::float8,
    extract(epoch FROM settled_at)::float8, xmin::text::bigint, substring(body FROM 1 FOR 4096)
"""

# Bounded by ids instead of a LIMIT: a page costs the same however few of its rows have these keys.
ROWS: LiteralString = f"""
    SELECT {ROW_COLUMNS} FROM outbox
    WHERE id > %b AND id <= %b AND key COLLATE "C" >= %b AND key COLLATE "C" < %b
    ORDER BY id
"""

THESE_ROWS: LiteralString = f"""
    SELECT {ROW_COLUMNS} FROM outbox WHERE id = ANY(%b) AND id >= %b AND id <= %b ORDER BY id
"""

WAITING: LiteralString = "SELECT key, blocked, reason FROM outbox_waiting WHERE key = ANY(%b)"

RETRIES_ARE_THERE: LiteralString = "SELECT to_regclass('retries') IS NOT NULL"

RETRIES: LiteralString = """
    SELECT order_id, extract(epoch FROM due_at)::float8 FROM retries WHERE order_id = ANY(%b)
"""

REQUEUES: LiteralString = """
    SELECT extract(epoch FROM at)::float8 FROM outbox_audit WHERE command = 'requeue' ORDER BY id
"""

# The lowest id that a partition can hold. If it is above 1, older partitions have been dropped.
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

# Set after connecting: `target_session_attrs=read-write` rejects a session that begins read-only.
READ_ONLY: LiteralString = "SET default_transaction_read_only = on"


class _Data(msgspec.Struct):
    version: int


class _Envelope(msgspec.Struct):
    data: _Data


_open = msgspec.json.Decoder(_Envelope).decode


class OrderRow(msgspec.Struct, frozen=True):
    """An order's row. Only suspects are asked for the state of their worker, later."""

    order_id: UUID
    status: str
    version: int
    updated: float
    worker: int | None


class OutboxRow(NamedTuple):
    """An outbox row with its key."""

    key: str
    event: EventSeen


class IdRange(NamedTuple):
    """Outbox ids greater than `above`, up to and including `last`."""

    above: int
    last: int


async def orders(conn: AsyncConnection, above: UUID, below: UUID, limit: int) -> list[OrderRow]:
    """Return at most `limit` orders with ids between the bounds, both excluded, in the order of their ids."""
    cursor = await conn.execute(ORDERS, [above, below, limit], prepare=True)
    return [OrderRow(*row) for row in await cursor.fetchall()]


async def these_orders(conn: AsyncConnection, order_ids: Sequence[UUID]) -> dict[UUID, OrderSeen]:
    """Return these orders as they are now, with the state of their workers and when their retries are due.

    An order that is gone is missing from the result.
    """
    workers = {row[0] for row in await (await conn.execute(worker_lock.ALIVE)).fetchall()}
    found = [OrderRow(*row) for row in await (await conn.execute(THESE_ORDERS, [list(order_ids)])).fetchall()]
    due: dict[UUID, float] = {}
    if await _value(conn, RETRIES_ARE_THERE):
        due = dict(await (await conn.execute(RETRIES, [list(order_ids)])).fetchall())
    return {
        row.order_id: OrderSeen(
            order_id=row.order_id,
            status=row.status,  # type: ignore[arg-type]  # a constraint allows these alone
            version=row.version,
            updated=row.updated,
            is_worked=row.worker in workers,
            retry_due=due.get(row.order_id),
        )
        for row in found
    }


async def rows(conn: AsyncConnection, above: int, upto: int, first_key: str, below_key: str) -> list[OutboxRow]:
    """Return the outbox rows with ids in (above, upto] and keys in [first_key, below_key)."""
    cursor = await conn.execute(ROWS, [above, upto, first_key, below_key], prepare=True)
    return [_row(row) for row in await cursor.fetchall()]


async def these_rows(conn: AsyncConnection, ids: Sequence[int]) -> list[OutboxRow]:
    """Return these outbox rows as they are now, each with the reason why its key waits, if it does."""
    if not ids:
        return []
    found = await (await conn.execute(THESE_ROWS, [list(ids), min(ids), max(ids)])).fetchall()
    keys = sorted({row[0] for row in found})
    waiting = {row[0]: row[1:] for row in await (await conn.execute(WAITING, [keys])).fetchall()}
    return [_row(row, *waiting.get(row[0], (False, ""))) for row in found]


async def requeues(conn: AsyncConnection) -> tuple[float, ...]:
    """Return the times at which operators requeued rows."""
    return tuple(row[0] for row in await (await conn.execute(REQUEUES)).fetchall())


async def clock(conn: AsyncConnection) -> float:
    """Return the server's time now."""
    return float(await _value(conn, CLOCK))


async def ids_since(conn: AsyncConnection, since: float | None) -> IdRange:
    """Return the ids of all rows created since then, by a binary search: no index has the time. None: of all rows."""
    low, last = int(await _value(conn, LOWEST_ID)) - 1, int(await _value(conn, LAST_ID))
    if since is None:
        return IdRange(low, last)
    high, above = last, low
    while high - low > 1:
        middle = (low + high) // 2
        found = await (await conn.execute(TIME_AT, [middle])).fetchone()
        if found is None or found[1] >= since:
            high = middle
        else:
            low = above = middle
    return IdRange(above, last)


async def coverage_start(conn: AsyncConnection) -> float:
    """Return the time since which the outbox still has every row; 0 if no partition was ever dropped."""
    lowest = int(await _value(conn, LOWEST_ID))
    if lowest == 1:
        return 0.0
    found = await (await conn.execute(TIME_AT, [lowest])).fetchone()
    return float(found[1]) if found is not None else await clock(conn)


async def read_only(conn: AsyncConnection) -> None:
    """Forbid this session to write."""
    await conn.execute(READ_ONLY)


def _row(row: TupleRow, blocked: bool = False, waits: str = "") -> OutboxRow:
    key, row_id, exchange, routing_key, state, created, settled, transaction, body = row
    try:
        version: int | None = _open(body).data.version
    except msgspec.DecodeError:
        version = None
    seen = EventSeen(
        row_id=row_id, type=routing_key if exchange else AGAIN, version=version, state=state, created=created,
        settled=settled, transaction=transaction, blocked=blocked, waits=waits,
    )  # fmt: skip
    return OutboxRow(key, seen)


async def _value(conn: AsyncConnection, statement: LiteralString) -> Any:
    row = await (await conn.execute(statement)).fetchone()
    assert row is not None
    return row[0]
