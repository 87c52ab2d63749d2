"""Messages that are never worked: what is wrong with each, and what becomes of its order.

A worker hands them to the dead-letter queue; another, or the same, moves that queue into the table `dead_letters`, and
fails the order in the same transaction. Only an order that waits for this very event, and only if it is not terminal:
whatever else a message says, its headers least of all, proves nothing.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Literal, LiteralString
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from orders.broker.consumer import KEPT_BYTES
from orders.database import orders_table
from orders.database.claim_orders import Wanted
from orders.database.finish_orders import storable_text
from orders.model import events
from orders.model.error_text import first_line
from orders.model.errors import OrdersError
from orders.model.events import Event, data_of
from orders.model.order import TERMINAL, Order
from orders.model.traceparent import continue_trace

LARGEST_EVENT = 64 << 10  # bytes; ours are some hundred

Kind = Literal["refused", "exhausted", "deadly", "malformed", "oversized", "unknown", "forged", "undeliverable"]

UNDELIVERABLE = "the broker gave it up: it was delivered too often, and never answered"

# An event of an order is known again by its id, anything else by its bytes: a move that is repeated leaves one letter.
KEEP: LiteralString = """
    INSERT INTO dead_letters (fingerprint, order_id, event_id, kind, reason, size, body)
    VALUES (%b, %b::uuid, %b::uuid, %b, %b, %b, %b)
    ON CONFLICT (fingerprint) DO UPDATE SET arrivals = dead_letters.arrivals + 1
"""

HAS_ARRIVED_BEFORE: LiteralString = """
    UPDATE dead_letters SET arrivals = arrivals + 1 WHERE fingerprint = uuid_send(%b::uuid) RETURNING id
"""

LOCK_ORDER: LiteralString = """
    SELECT order_id, status, version, customer_id, currency, lines::text, total_minor, reference, attempts,
           failure_reason, created_at, updated_at, finished_at, event_id
    FROM orders WHERE order_id = %b FOR UPDATE
"""

FAIL: LiteralString = """
    WITH failed AS (
        UPDATE orders
        SET status = 'failed', version = version + 1, worker = NULL, failure_reason = %b,
            updated_at = clock_timestamp(), finished_at = clock_timestamp()
        WHERE order_id = %b
    ), no_more AS (
        DELETE FROM retries WHERE order_id = %b
    )
    INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, headers, body)
    VALUES (%b, %b::uuid::text, 'orders', 'order.failed', false, 'application/cloudevents+json',
            jsonb_build_object('traceparent', %b::text), %b)
"""

CONDEMN: LiteralString = "INSERT INTO verdicts (event_id, reason) VALUES (%b, %b) ON CONFLICT DO NOTHING"
TAKE_VERDICT: LiteralString = "DELETE FROM verdicts WHERE event_id = %b RETURNING reason"

COLUMNS_ARE_THERE: LiteralString = """
    SELECT id, fingerprint, order_id, event_id, kind, reason, state, arrivals, size, body, died_at, settled_at
    FROM dead_letters LIMIT 0
"""


class Poison(OrdersError):
    """This message can never be worked."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Verdict(msgspec.Struct, frozen=True):
    """Why a worker is about to hand this event to the dead letters, where it is not to be seen from the message."""

    event_id: UUID
    reason: str


class Letter(msgspec.Struct, frozen=True):
    """A message from the dead-letter queue."""

    body: bytes
    size: int


def wanted_of(body: bytes, size: int) -> Wanted:
    """Return what a message asks for; raise Poison if it is no event that asks for work."""
    if size > LARGEST_EVENT:
        raise Poison("oversized", f"{size} bytes are no event of ours: {LARGEST_EVENT} is the most")
    try:
        envelope = events.open_envelope(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Poison("malformed", f"not an event: {first_line(error)}") from None
    if envelope.type not in events.REQUIRED:
        raise Poison("malformed", f"an event of type {storable_text(envelope.type)[:100]!r} asks for no work")
    if envelope.subject != str(envelope.data.order_id):
        raise Poison("malformed", "its subject is not its order")
    return Wanted(envelope.data.order_id, envelope.id, envelope.data.version)


async def bury(conn: AsyncConnection, batch: Sequence[Verdict | Letter]) -> list[None]:
    """Write verdicts and letters, and the failures that follow from them, in one transaction."""
    async with conn.transaction():
        for each in batch:
            match each:
                case Verdict(event_id, reason):
                    await conn.execute(CONDEMN, [event_id, storable_text(reason)], prepare=True)
                case Letter():
                    await _bury_letter(conn, each)
    return [None] * len(batch)


async def _bury_letter(conn: AsyncConnection, letter: Letter) -> None:
    try:
        wanted = wanted_of(letter.body, letter.size)
        order = await _order_that_waits_for(conn, wanted)
    except Poison as poison:
        await _keep(conn, sha256(letter.body).digest(), None, poison.kind, str(poison), letter)
        return
    if order is None:
        return
    cursor = await conn.execute(TAKE_VERDICT, [wanted.event_id], prepare=True)
    verdict = await cursor.fetchone()
    kind: Kind = "deadly" if verdict else "undeliverable"
    reason = verdict[0] if verdict else UNDELIVERABLE
    await _keep(conn, wanted.event_id.bytes, wanted, kind, reason, letter)
    if order.status not in TERMINAL:
        event = _failed(order, reason)
        row = [reason, order.order_id, order.order_id, event.event_id, order.order_id, event.traceparent, event.body]
        await conn.execute(FAIL, row, prepare=True)


async def _keep(
    conn: AsyncConnection, fingerprint: bytes, wanted: Wanted | None, kind: Kind, reason: str, letter: Letter
) -> None:
    order_id, event_id = (wanted.order_id, wanted.event_id) if wanted else (None, None)
    body = letter.body[:KEPT_BYTES]
    await conn.execute(
        KEEP, [fingerprint, order_id, event_id, kind, storable_text(reason), letter.size, body], prepare=True
    )


async def _order_that_waits_for(conn: AsyncConnection, wanted: Wanted) -> Order | None:
    """Lock and return the order of an event; None if that was buried before. Raises Poison if it is forged."""
    cursor = await conn.execute(LOCK_ORDER, [wanted.order_id], prepare=True)
    row = await cursor.fetchone()
    cursor = await conn.execute(HAS_ARRIVED_BEFORE, [wanted.event_id], prepare=True)
    if await cursor.fetchone() is not None:
        return None
    if row is None:
        raise Poison("unknown", "there is no such order")
    if row[-1] not in {None, wanted.event_id}:  # None: it is older than the column, and waits for any
        raise Poison("forged", "its order waits for another event")
    return orders_table.order_of(row[:-1])


def _failed(order: Order, reason: str) -> Event:
    data = data_of(order, status="failed", version=order.version + 1, reason=reason)
    return events.event_of("order.failed", data, continue_trace(None))
