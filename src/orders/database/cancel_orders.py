"""Cancel orders that no worker has claimed: the status and its event are written by one transaction, or neither is.

The row decides whether a cancel or a worker's claim comes first: each is one UPDATE of a row that is `placed`. A row
that another session has locked is skipped, and its cancellation is tried again later.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import LiteralString, cast
from uuid import UUID

import msgspec
from prometheus_client import Counter
from psycopg import AsyncConnection

from orders.database import idempotency_keys_table, orders_table, outbox_table
from orders.database.idempotency_keys_table import Key
from orders.database.orders_table import OrderLookup
from orders.database.row_locks import Busy
from orders.model import events
from orders.model.errors import KeyReused, OrderNotFound, OrdersError, TooLate, Unavailable
from orders.model.order import Order

OPERATION = "cancel"
CANCELLED = Counter("orders_cancelled_total", "Orders cancelled, each with its event")

ROUNDS = 3  # each finds a state that the last one did not expect; more than one is rare

# The rows are locked first, in order: a key is taken only for an order that this statement cancels, or that has been
# cancelled already. `version` is the one that the event was made for. A row that is locked is not among the answers;
# `is_new` is NULL for one that is not locked, and whose key was taken by another order.
CANCEL: LiteralString = f"""
    WITH asked AS (
        SELECT * FROM unnest(
            %b::uuid[], %b::integer[], %b::timestamptz[], %b::text[], %b::text[], %b::bytea[], %b::bytea[],
            %b::uuid[], %b::bytea[], %b::text[]
        ) AS t (order_id, version, finished_at, client, key, fingerprint, answer, event_id, body, traceparent)
    ), locked AS (
        SELECT o.order_id, o.status FROM orders o JOIN asked USING (order_id)
        WHERE o.status IN ('placed', 'cancelled') AND o.version = asked.version
        ORDER BY o.order_id
        FOR NO KEY UPDATE OF o SKIP LOCKED
    ), first_use AS (
        SELECT client, 'cancel' AS operation, key, fingerprint, order_id, answer FROM asked JOIN locked USING (order_id)
        WHERE key IS NOT NULL
    ), taken AS (
        {idempotency_keys_table.TAKE}
    ), cancelled AS (
        UPDATE orders o
        SET status = 'cancelled', version = o.version + 1, updated_at = asked.finished_at,
            finished_at = asked.finished_at
        FROM asked JOIN locked USING (order_id)
        WHERE o.order_id = asked.order_id AND o.status = 'placed'
          AND (asked.key IS NULL OR asked.order_id IN (SELECT order_id FROM taken))
        RETURNING o.order_id
    ), event AS (
        SELECT event_id, order_id, 'orders' AS exchange, 'order.cancelled' AS routing_key, false AS required, body,
               traceparent
        FROM cancelled JOIN asked USING (order_id)
    ), appended AS (
        {outbox_table.APPEND}
    )
    SELECT order_id, bool_or(is_new) FROM (
        SELECT order_id, true AS is_new FROM cancelled UNION ALL SELECT order_id, false FROM taken
        UNION ALL SELECT order_id, NULL FROM locked
    ) AS settled GROUP BY order_id
"""


REPEATED: LiteralString = f"SELECT {idempotency_keys_table.WRITE_SOMETHING}"


class Cancellation(msgspec.Struct, frozen=True, kw_only=True):
    """A client's request to cancel an order."""

    order_id: UUID
    client: str
    traceparent: str
    key: str | None = None

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the request, to tell a repeat from a misuse of the key."""
        return sha256(self.order_id.bytes).digest()

    @property
    def size(self) -> int:
        """The size in bytes, nearly, without the order's lines, which are not known yet."""
        return 2000


class Cancelled(msgspec.Struct, frozen=True):
    """The order is cancelled; `answer` is the body of the first answer, `replayed`: the key was used before."""

    answer: bytes
    replayed: bool = False


Answer = Cancelled | OrdersError | Busy
_encode = msgspec.json.Encoder().encode


async def cancel_orders(conn: AsyncConnection, batch: Sequence[Cancellation]) -> list[Answer]:
    """Cancel each order that is still `placed`; return the outcomes in the batch's order.

    An outcome is Cancelled, OrderNotFound, TooLate, KeyReused, Busy if another session has locked the order's row, or
    Unavailable if the order kept changing. Harmless to repeat: an order that is cancelled already is a success.
    """
    answers: dict[int, Answer] = {}
    written: set[int] = set()  # the answers whose own commit has waited for what it has to wait for
    skipped: dict[UUID, int] = {}  # order id -> its version when the last round left it out
    for round_ in range(ROUNDS + 1):
        open_ = [number for number in range(len(batch)) if number not in answers]
        if not open_:
            break
        keys = [Key(batch[n].client, OPERATION, key) for n in open_ if (key := batch[n].key) is not None]
        first_uses = await idempotency_keys_table.read_many(conn, keys) if keys else {}
        orders = await orders_table.read_many(conn, [OrderLookup(batch[n].client, batch[n].order_id) for n in open_])
        rows: dict[UUID, tuple[int, tuple[object, ...]]] = {}
        for number, order in zip(open_, orders, strict=True):
            asked = batch[number]
            first = first_uses.get(Key(asked.client, OPERATION, asked.key or ""))
            if first is not None:
                is_ours = first.fingerprint == asked.fingerprint
                answers[number] = Cancelled(first.answer, replayed=round_ == 0) if is_ours else KeyReused()
            elif isinstance(order, OrderNotFound):
                answers[number] = order
            elif order.status == "cancelled" and asked.key is None:
                answers[number] = Cancelled(_encode(order))
            elif order.status not in {"placed", "cancelled"}:
                answers[number] = TooLate(f"The order is {order.status} already.")
            elif skipped.get(order.order_id) == order.version:
                answers[number] = Busy(order.order_id)  # it has not changed: its row is locked
            else:
                # One row for each order, or its event would come twice; the others find it cancelled in the next round.
                rows.setdefault(order.order_id, (number, _row(asked, order)))
        if rows and round_ < ROUNDS:
            columns = [list(column) for column in zip(*(row for _, row in rows.values()), strict=True)]
            cursor = await conn.execute(CANCEL, columns, prepare=True)
            skipped = {order_id: cast(int, row[1]) for order_id, (_, row) in rows.items()}
            for order_id, is_new in await cursor.fetchall():
                del skipped[order_id]
                if is_new is None:
                    continue
                CANCELLED.inc(is_new)
                number, row = rows[order_id]
                answers[number] = Cancelled(cast(bytes, row[6]))  # `answer`
                written.add(number)
    if any(isinstance(answer, Cancelled) and number not in written for number, answer in answers.items()):
        await conn.execute(REPEATED, prepare=True)
    return [answers.get(number) or Unavailable() for number in range(len(batch))]


def _row(asked: Cancellation, order: Order) -> tuple[object, ...]:
    """Make a row of CANCEL for an order that is `placed`, or `cancelled` already and only wants its key kept."""
    seen = order.version
    if order.status == "placed":
        now = datetime.now(UTC)
        order = msgspec.structs.replace(
            order, status="cancelled", version=seen + 1, updated_at=now, finished_at=now
        )  # fmt: skip
    data = events.data_of(order, status=order.status, version=order.version)
    event = events.event_of("order.cancelled", data, asked.traceparent)
    return (
        order.order_id, seen, order.finished_at, asked.client, asked.key, asked.fingerprint, _encode(order),
        event.event_id, event.body, event.traceparent,
    )  # fmt: skip
