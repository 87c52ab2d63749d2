"""A scratch database: copies of orders and outbox rows on disk, so that memory bounds no range of time.

The two are joined here, never in the live database.
"""

import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self
from uuid import UUID

from orders.tools.reconcile.queries import OrderRow, OutboxRow
from orders.tools.reconcile.rules import EventSeen, OrderSeen

SCHEMA = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA cache_size = -32000;
    CREATE TABLE orders (
        key TEXT PRIMARY KEY, status TEXT, version INTEGER, updated REAL, is_worked INTEGER, retry_due REAL
    ) WITHOUT ROWID;
    CREATE TABLE events (
        key TEXT, id INTEGER, type TEXT, version INTEGER, state TEXT, created REAL, settled REAL, txn INTEGER,
        blocked INTEGER, waits TEXT, PRIMARY KEY (key, id)
    ) WITHOUT ROWID;
    CREATE TABLE suspects (key TEXT PRIMARY KEY) WITHOUT ROWID;
"""

# The rows of both tables for each key of `{keys}`.
_HISTORIES = """
    SELECT k.key, o.status, o.version, o.updated, o.is_worked, o.retry_due,
           e.id, e.type, e.version, e.state, e.created, e.settled, e.txn, e.blocked, e.waits
    FROM {keys} AS k LEFT JOIN orders o ON o.key = k.key LEFT JOIN events e ON e.key = k.key
    ORDER BY k.key, e.id
"""
HISTORIES = _HISTORIES.format(keys="(SELECT key FROM orders UNION SELECT key FROM events)")
SUSPICIOUS_HISTORIES = _HISTORIES.format(keys="suspects")


class OrderHistory(NamedTuple):
    """An order, None if it has no row, with its outbox rows in the order of their ids."""

    order_id: UUID
    order: OrderSeen | None
    rows: list[EventSeen]


class ScratchDatabase:
    """A private SQLite database, deleted when it is closed. One thread may use it."""

    def __init__(self) -> None:
        # An empty name makes a temporary database: in memory at first, in an unnamed file when it grows.
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def add_orders(self, rows: Iterable[OrderRow]) -> None:
        """Store orders of the first pass; their workers count as gone until the second one asks."""
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT OR REPLACE INTO orders VALUES (?, ?, ?, ?, 0, NULL)",
            ((str(row.order_id), row.status, row.version, row.updated) for row in rows),
        )
        self._db.execute("COMMIT")

    def add_rows(self, rows: Iterable[OutboxRow]) -> None:
        """Store outbox rows; a row replaces the earlier copy with its id."""
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (key, e.row_id, e.type, e.version, e.state, e.created, e.settled, e.transaction, e.blocked, e.waits)
                for key, e in rows
            ),
        )
        self._db.execute("COMMIT")

    def renew_orders(self, keys: Sequence[UUID], found: dict[UUID, OrderSeen]) -> None:
        """Replace the copies of these orders by what was found of them now; delete those that are gone."""
        self._db.execute("BEGIN")
        self._db.executemany("DELETE FROM orders WHERE key = ?", ((str(key),) for key in keys))
        self._db.executemany(
            "INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?)",
            (
                (str(order_id), o.status, o.version, o.updated, o.is_worked, o.retry_due)
                for order_id, o in found.items()
            ),
        )
        self._db.execute("COMMIT")

    def rows_of_suspects(self) -> Iterator[list[int]]:
        """Yield the ids of the suspects' outbox rows, at most 1,000 at a time."""
        cursor = self._db.cursor()
        cursor.execute("SELECT id FROM events WHERE key IN (SELECT key FROM suspects) ORDER BY id")
        while ids := [row[0] for row in cursor.fetchmany(1000)]:
            yield ids

    def suspect(self, keys: Iterable[UUID]) -> int:
        """Make these orders the suspects, and no others; return how many. `keys` may be read from histories()."""
        self._db.execute("BEGIN")
        self._db.execute("CREATE TABLE following (key TEXT PRIMARY KEY) WITHOUT ROWID")
        cursor = self._db.executemany("INSERT OR IGNORE INTO following VALUES (?)", ((str(key),) for key in keys))
        self._db.execute("DROP TABLE suspects")
        self._db.execute("ALTER TABLE following RENAME TO suspects")
        self._db.execute("COMMIT")
        return cursor.rowcount

    def suspects(self) -> Iterator[list[UUID]]:
        """Yield the suspects, at most 500 at a time."""
        cursor = self._db.cursor()
        cursor.execute("SELECT key FROM suspects ORDER BY key")
        while keys := [UUID(row[0]) for row in cursor.fetchmany(500)]:
            yield keys

    def histories(self, *, of_suspects: bool = False) -> Iterator[OrderHistory]:
        """Yield the history of every order, or of every suspect, in the order of their ids."""
        cursor = self._db.cursor()
        cursor.execute(SUSPICIOUS_HISTORIES if of_suspects else HISTORIES)
        for key, rows in itertools.groupby(cursor, key=lambda row: row[0]):
            first, *others = rows
            order_id = UUID(key)
            _, status, version, updated, is_worked, retry_due, *_ = first
            order = None
            if status is not None:
                order = OrderSeen(
                    order_id=order_id, status=status, version=version, updated=updated, is_worked=bool(is_worked),
                    retry_due=retry_due,
                )  # fmt: skip
            yield OrderHistory(order_id, order, [_event(row) for row in (first, *others) if row[6] is not None])


def _event(row: Sequence[Any]) -> EventSeen:
    row_id, type_, version, state, created, settled, transaction, blocked, waits = row[6:]
    return EventSeen(
        row_id=row_id, type=type_, version=version, state=state, created=created, settled=settled,
        transaction=transaction, blocked=bool(blocked), waits=waits,
    )  # fmt: skip
