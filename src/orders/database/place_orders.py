"""Place orders: an order and its event are written by one transaction, or neither is.

A batch is one statement, which is a transaction by itself: no round trip while a key is held.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import LiteralString
from uuid import UUID

import msgspec
from prometheus_client import Counter
from psycopg import AsyncConnection

from orders.database import idempotency_keys_table, outbox_table, pg_arrays
from orders.database.idempotency_keys_table import Key
from orders.database.pg_arrays import PgArray
from orders.model import events
from orders.model.errors import KeyReused, Unavailable
from orders.model.events import Event
from orders.model.ids import uuid7
from orders.model.order import NewOrder, Order

OPERATION = "place"

PLACED = Counter("orders_placed_total", "Orders written, each with its event")

# An order whose key was taken before, here or in a transaction that is still open, is left out (after the end of that
# transaction). An order that exists already was written by an earlier run of this batch, whose outcome is not known:
# its row, its key and its event stay.
#
# The statement returns the orders that it left out, since that is nearly always none.
PLACE: LiteralString = f"""
    WITH asked AS (
        SELECT * FROM unnest(
            %b::uuid[], %b::text[], %b::text[], %b::json[], %b::bigint[], %b::text[], %b::timestamptz[],
            %b::text[], %b::text[], %b::bytea[], %b::bytea[], %b::uuid[], %b::bytea[], %b::text[]
        ) AS t (
            order_id, customer_id, currency, lines, total_minor, reference, created_at,
            client, key, fingerprint, answer, event_id, body, traceparent
        )
    ), first_use AS (
        SELECT client, 'place' AS operation, key, fingerprint, order_id, answer FROM asked WHERE key IS NOT NULL
    ), taken AS (
        {idempotency_keys_table.TAKE}
    ), placed AS (
        INSERT INTO orders (order_id, client, customer_id, currency, lines, total_minor, reference, created_at,
                            updated_at, event_id)
        SELECT order_id, client, customer_id, currency, lines, total_minor, reference, created_at,
               created_at, event_id
        FROM asked
        WHERE key IS NULL OR order_id IN (SELECT order_id FROM taken)
        ON CONFLICT DO NOTHING
        RETURNING order_id
    ), event AS (
        SELECT event_id, order_id, 'orders' AS exchange, 'order.placed' AS routing_key, true AS required, body,
               traceparent
        FROM placed JOIN asked USING (order_id)
    ), appended AS (
        {outbox_table.APPEND}
    )
    SELECT order_id, {idempotency_keys_table.WRITE_SOMETHING}
    FROM asked WHERE order_id NOT IN (SELECT order_id FROM placed)
"""


# Planning PLACE for each batch would cost more than running it, and there is only one good plan.
PLANNED_ONCE = {"plan_cache_mode": "force_generic_plan"}


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """An order to write, with everything that is written with it."""

    order: Order
    client: str
    event: Event
    answer: bytes = b""
    key: str | None = None
    fingerprint: bytes | None = None

    @property
    def size(self) -> int:
        """The size in bytes, nearly."""
        return 500 + len(bytes(self.order.lines)) + len(self.answer) + len(self.event.body)


class Placed(msgspec.Struct, frozen=True):
    """The order is committed; `answer` is the body of the first answer, `replayed` says that it was given before."""

    order_id: UUID
    answer: bytes
    replayed: bool = False


_encode = msgspec.json.Encoder().encode


def placement_of(new: NewOrder | None, *, client: str, traceparent: str, key: str | None = None) -> Placement:
    """Make everything that is written for a new order; None is the tutorial's order, without customer and lines.

    `client` is the caller's name, '' if anonymous; `key` is its Idempotency-Key. Raises InvalidOrder if the total does
    not fit 64 bits.
    """
    now = datetime.now(UTC)
    order = Order(
        order_id=uuid7(),
        status="placed",
        version=1,
        customer_id=new.customer_id if new else None,
        currency=new.currency if new else None,
        lines=msgspec.Raw(_encode(new.lines if new else None)),
        total_minor=new.total_minor() if new else None,
        reference=new.reference if new else None,
        attempts=0,
        failure_reason=None,
        created_at=now,
        updated_at=now,
        finished_at=None,
    )
    data = events.data_of(order, status=order.status, version=order.version)
    return Placement(
        order=order,
        client=client,
        event=events.event_of("order.placed", data, traceparent),
        answer=_encode(order),
        key=key,
        fingerprint=sha256(_encode(new)).digest() if key is not None else None,
    )


async def place_orders(conn: AsyncConnection, batch: Sequence[Placement]) -> list[Placed | KeyReused | Unavailable]:
    """Write the orders with their events and keys; return the outcomes in the batch's order.

    Unavailable stands for an order whose key was deleted at this moment: a repeat of the request succeeds. Harmless to
    repeat: orders that an earlier run committed are found, not written again.
    """
    cursor = await conn.execute(PLACE, parameters_of(batch), prepare=True)
    left_out = {row[0] for row in await cursor.fetchall()}
    PLACED.inc(len(batch) - len(left_out))
    doubtful = sorted({_key(p) for p in batch if p.key is not None and p.order.order_id in left_out})
    first_uses = await idempotency_keys_table.read_many(conn, doubtful) if doubtful else {}

    answers: list[Placed | KeyReused | Unavailable] = []
    for placement in batch:
        order_id = placement.order.order_id
        if order_id not in left_out or placement.key is None:  # just now, or by an earlier run of this batch
            answers.append(Placed(order_id, placement.answer))
            continue
        first = first_uses.get(_key(placement))
        if first is None:  # the key's row, which was in the way a moment ago, has been removed since
            answers.append(Unavailable())
        elif first.order_id == order_id:
            answers.append(Placed(order_id, placement.answer))
        elif first.fingerprint == placement.fingerprint:
            answers.append(Placed(first.order_id, first.answer, replayed=True))
        else:
            answers.append(KeyReused())
    return answers


def _key(placement: Placement) -> Key:
    return Key(placement.client, OPERATION, placement.key or "")


def parameters_of(batch: Sequence[Placement]) -> list[PgArray]:
    """Return the parameters of PLACE: an array for each column of `asked`, in its order."""
    orders = [p.order for p in batch]
    return [
        pg_arrays.uuids([o.order_id for o in orders]),
        pg_arrays.texts([o.customer_id for o in orders]),
        pg_arrays.texts([o.currency for o in orders]),
        pg_arrays.jsons([None if o.customer_id is None else bytes(o.lines) for o in orders]),
        pg_arrays.bigints([o.total_minor for o in orders]),
        pg_arrays.texts([o.reference for o in orders]),
        pg_arrays.times([o.created_at for o in orders]),
        pg_arrays.texts([p.client for p in batch]),
        pg_arrays.texts([p.key for p in batch]),
        pg_arrays.blobs([p.fingerprint for p in batch]),
        pg_arrays.blobs([p.answer if p.key is not None else None for p in batch]),
        pg_arrays.uuids([p.event.event_id for p in batch]),
        pg_arrays.blobs([p.event.body for p in batch]),
        pg_arrays.texts([p.event.traceparent for p in batch]),
    ]
