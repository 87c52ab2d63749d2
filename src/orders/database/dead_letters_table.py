"""The tables `dead_letters` and `verdicts`: messages that are never worked, and failed orders that can be redriven.

A worker sends such a message to the dead-letter queue; a worker moves that queue into the table, and fails the order in
the same transaction: only an order that waits for this very event, and only if it is not terminal. Nothing else that
the message says is trusted, its headers least of all.

A message that the broker itself gave up is no dead letter: that is the fault of a policy, not of the order. Neither is
a message that no worker sent here, which it marks before it does: every subscriber could copy an event into the queue.
The order's message goes to `retries` and comes back through the outbox. Whoever forges can have it sent once more.
"""

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from typing import Literal, LiteralString
from uuid import UUID

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row, dict_row

from orders.database import attempt_log, orders_table, outbox_table, retries_table
from orders.database.row_locks import Busy
from orders.model import events, work_message
from orders.model.events import Event, data_of
from orders.model.order import TERMINAL, Order
from orders.model.storable_text import storable_text
from orders.model.traceparent import continue_trace
from orders.model.work_message import InvalidMessage, WorkMessage

DeadLetterKind = Literal[
    "refused", "exhausted", "deadly", "malformed", "oversized", "unknown", "forged", "undeliverable"
]

UNDELIVERABLE = "the broker gave it up: it was delivered too often, and never answered"
UNEXPLAINED = "its message came to the dead letters, and no worker sent it there"
MAX_STORED_BYTES = 64 << 10  # of a message's body

COLUMNS: LiteralString = "fingerprint, order_id, event_id, kind, reason"

COLUMNS_ARE_THERE: LiteralString = f"""
    SELECT {COLUMNS}, id, state, arrivals, size, body, died_at, settled_at
    FROM dead_letters LIMIT 0
"""

# The fingerprint is the event's id, or the hash of a body that is no event of ours: a repeated move adds no second row.
INSERT: LiteralString = f"""
    INSERT INTO dead_letters ({COLUMNS}, size, body)
    VALUES (%b, %b::uuid, %b::uuid, %b, %b, %b, %b)
    ON CONFLICT (fingerprint) DO UPDATE SET arrivals = dead_letters.arrivals + 1
"""

COUNT_ARRIVAL: LiteralString = """
    UPDATE dead_letters SET arrivals = arrivals + 1 WHERE fingerprint = uuid_send(%b::uuid) RETURNING id
"""

LOCK_ORDER: LiteralString = f"""
    SELECT {orders_table.COLUMNS}, o.event_id
    FROM orders o WHERE o.order_id = %b FOR NO KEY UPDATE SKIP LOCKED
"""
ORDER_EXISTS: LiteralString = "SELECT FROM orders WHERE order_id = %b"

# For rows that cannot be skipped, such as a letter that arrives again while another session has locked it.
LIMIT_WAITS: LiteralString = "SET LOCAL lock_timeout = '50ms'"

FAIL_ORDER: LiteralString = f"""
    WITH failed AS (
        UPDATE orders
        SET status = 'failed', version = version + 1, worker = NULL, failure_reason = %b,
            updated_at = clock_timestamp(), finished_at = clock_timestamp(),
            attempt_log = log_attempt(
                attempt_log, attempts, CASE WHEN worker <> 0 THEN updated_at END, %b, %b, NULL, %b, NULL
            )
        WHERE order_id = %b
    ), no_more AS (
        DELETE FROM retries WHERE order_id = %b
    ), event AS (
        SELECT %b::uuid AS event_id, %b::uuid AS order_id, 'orders' AS exchange, 'order.failed' AS routing_key,
               false AS required, %b::bytea AS body, %b::text AS traceparent
    )
    {outbox_table.APPEND}
"""

BRING_BACK: LiteralString = f"""
    WITH added AS (
        {retries_table.BRING_BACK}
        RETURNING order_id, due_at
    ), logged AS (
        UPDATE orders o
        SET attempt_log = log_attempt(attempt_log, attempts, NULL, %b, NULL, NULL, %b, due_at)
        FROM added WHERE o.order_id = added.order_id
    )
    SELECT extract(epoch FROM due_at - clock_timestamp())::float8 FROM added
"""

MARK_POISON: LiteralString = "INSERT INTO verdicts (event_id, reason) VALUES (%b, %b) ON CONFLICT DO NOTHING"
HAS_POISON_MARK: LiteralString = "SELECT FROM verdicts WHERE event_id = %b"
TAKE_POISON_MARK: LiteralString = "DELETE FROM verdicts WHERE event_id = %b RETURNING reason"

GROUPS: LiteralString = """
    SELECT d.kind, d.reason, count(*) AS letters, count(*) FILTER (WHERE o.status = 'failed') AS redrivable,
           min(d.died_at) AS oldest, max(d.died_at) AS newest, min(d.id) AS first_id, max(d.id) AS last_id
    FROM dead_letters d LEFT JOIN orders o ON o.order_id = d.order_id
    WHERE d.state = 'dead' AND (%(reason)s::text IS NULL OR strpos(lower(d.reason), lower(%(reason)s)) > 0)
    GROUP BY d.kind, d.reason ORDER BY letters DESC, d.kind, d.reason
"""

# The inner LIMIT bounds the cost.
COUNT_DEAD: LiteralString = """
    SELECT count(*) FROM (SELECT FROM dead_letters WHERE state = 'dead' LIMIT %b) AS dead
"""

# `ids` are of letters or, as text, of orders.
SELECT: LiteralString = """
    SELECT d.id, d.kind, d.reason, o.status = 'failed' AS is_redrivable
    FROM dead_letters d LEFT JOIN orders o ON o.order_id = d.order_id
    WHERE d.state = 'dead' AND d.id > %(above)s
      AND (%(ids)s::text[] IS NULL OR d.id::text = ANY(%(ids)s) OR d.order_id::text = ANY(%(ids)s))
      AND (%(reason)s::text IS NULL OR strpos(lower(d.reason), lower(%(reason)s)) > 0)
    ORDER BY d.id LIMIT %(limit)s
"""

SHOW: LiteralString = """
    SELECT d.id, d.state, d.kind, d.reason, d.order_id, o.status AS order_status, o.version AS order_version,
           d.event_id, d.arrivals, d.died_at, d.settled_at, d.size, d.body
    FROM dead_letters d LEFT JOIN orders o ON o.order_id = d.order_id
    WHERE d.id::text = %(id)s OR d.order_id::text = %(id)s
    ORDER BY d.id DESC LIMIT 1
"""

AUDIT: LiteralString = """
    SELECT at, actor, command, reason, event_id FROM dead_letter_audit WHERE letter_id = %s ORDER BY id
"""

AUDIT_COLUMNS: LiteralString = "actor, command, letter_id, order_id, reason"

DISCARD: LiteralString = f"""
    WITH discarded AS (
        UPDATE dead_letters SET state = 'discarded', settled_at = clock_timestamp()
        WHERE state = 'dead' AND (id::text = %(id)s OR order_id::text = %(id)s)
        RETURNING id, order_id
    )
    INSERT INTO dead_letter_audit ({AUDIT_COLUMNS})
    SELECT %(actor)s, 'discard', id, order_id, %(reason)s FROM discarded
    RETURNING letter_id
"""


class PoisonMark(msgspec.Struct, frozen=True):
    """Why a worker sends this event to the dead letters; the message itself does not show it."""

    event_id: UUID
    reason: str


class DeadLetter(msgspec.Struct, frozen=True):
    """A message from the dead-letter queue. `size`: bytes of the whole body, of which `body` may be the beginning."""

    body: bytes
    size: int
    given_up: "GivenUp | None" = None


class GivenUp(msgspec.Struct, frozen=True):
    """Why the broker itself gave a message up, as its headers say, and their trace context. `cause`: for people."""

    reason: str  # expired, maxlen or delivery_limit; unexplained: no worker sent it, and the headers say nothing
    cause: str
    traceparent: str


class BroughtBack(msgspec.Struct, frozen=True):
    """A message that its order is not at fault for is no dead letter: the order gets another in `seconds`.

    None: no order waits for the message, or another is on its way already. `reason` is that of GivenUp.
    """

    reason: str
    order_id: UUID
    seconds: float | None


class ReasonGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The dead letters of one kind and reason: how many, how many of them can be redriven, their times and ids."""

    kind: str
    reason: str
    letters: int
    redrivable: int
    oldest: datetime
    newest: datetime
    first_id: int
    last_id: int


class SelectedLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter of a selection. `is_redrivable`: whether its order is failed; None if it has no order."""

    id: int
    kind: str
    reason: str
    is_redrivable: bool | None


class LetterSelection(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters with one of `ids` (of letters or orders, as text) and with `reason` in theirs; None selects any."""

    ids: Sequence[str] | None = None
    reason: str | None = None


async def store(conn: AsyncConnection, batch: Sequence[PoisonMark | DeadLetter]) -> list[BroughtBack | Busy | None]:
    """Store poison marks and dead letters, and fail the orders of the latter, in one transaction.

    The order of a message that the broker gave up does not fail; it gets its message once more. Harmless to repeat.
    Returns None for each item that is stored, BroughtBack for one that is no dead letter, or Busy for one whose order
    or letter another session has locked; nothing is stored of that. If the lock is not the order's, each item gets a
    transaction of its own.
    """
    try:
        async with conn.transaction():
            await conn.execute(LIMIT_WAITS)
            return [await _store(conn, item) for item in batch]
    except psycopg.errors.LockNotAvailable:
        if len(batch) == 1:
            return [Busy(_order_id_of(batch[0]))]
    return [answer for item in batch for answer in await store(conn, [item])]


async def _store(conn: AsyncConnection, item: PoisonMark | DeadLetter) -> BroughtBack | Busy | None:
    match item:
        case PoisonMark():
            await _mark_poison(conn, item)
            return None
        case DeadLetter():
            return await _store_letter(conn, item)


def _order_id_of(item: PoisonMark | DeadLetter) -> UUID | None:
    try:
        return work_message.parse(item.body, item.size).order_id if isinstance(item, DeadLetter) else None
    except InvalidMessage:
        return None


async def _mark_poison(conn: AsyncConnection, mark: PoisonMark) -> None:
    await conn.execute(MARK_POISON, [mark.event_id, storable_text(mark.reason)], prepare=True)


async def _store_letter(conn: AsyncConnection, letter: DeadLetter) -> BroughtBack | Busy | None:
    try:
        message = work_message.parse(letter.body, letter.size)
    except InvalidMessage as invalid:
        await _insert(conn, letter, invalid.kind, str(invalid))
        return None
    cursor = await conn.execute(LOCK_ORDER, [message.order_id], prepare=True)
    row = await cursor.fetchone()
    if row is None:
        cursor = await conn.execute(ORDER_EXISTS, [message.order_id], prepare=True)
        if await cursor.fetchone() is not None:
            return Busy(message.order_id)
    elif letter.given_up is not None and not await _is_at_fault(conn, letter.given_up, message, row):
        return await _bring_back(conn, letter, letter.given_up, message, row)
    cursor = await conn.execute(COUNT_ARRIVAL, [message.event_id], prepare=True)
    if await cursor.fetchone() is not None:
        return None
    if row is None:
        await _insert(conn, letter, "unknown", "there is no such order")
    elif row[-1] not in {None, message.event_id}:  # None: the order is older than the column, and waits for any event
        await _insert(conn, letter, "forged", "its order waits for another event")
    elif letter.given_up is None and not await _has_mark(conn, message) and not _has_ended(row):
        unexplained = GivenUp("unexplained", UNEXPLAINED, continue_trace(None))
        return await _bring_back(conn, letter, unexplained, message, row)
    else:
        await _store_and_fail(conn, letter, message, orders_table.order_of(row))
    return None


async def _is_at_fault(conn: AsyncConnection, given_up: GivenUp, message: WorkMessage, row: TupleRow) -> bool:
    """Whether the order itself shows that it is poison: by its mark, or by as many attempts as we allow deliveries."""
    if given_up.reason == "delivery_limit" and orders_table.order_of(row).attempts >= work_message.MOST_DELIVERIES:
        return True
    return await _has_mark(conn, message)


async def _has_mark(conn: AsyncConnection, message: WorkMessage) -> bool:
    cursor = await conn.execute(HAS_POISON_MARK, [message.event_id], prepare=True)
    return await cursor.fetchone() is not None


def _has_ended(row: TupleRow) -> bool:
    return orders_table.order_of(row).status in TERMINAL


async def _bring_back(
    conn: AsyncConnection, letter: DeadLetter, given_up: GivenUp, message: WorkMessage, row: TupleRow
) -> BroughtBack:
    if _has_ended(row) or row[-1] not in {None, message.event_id}:
        return BroughtBack(given_up.reason, message.order_id, None)
    retry = [message.event_id, letter.body, given_up.traceparent, message.order_id]
    cursor = await conn.execute(BRING_BACK, [*retry, given_up.reason, storable_text(given_up.cause)], prepare=True)
    added = await cursor.fetchone()
    return BroughtBack(given_up.reason, message.order_id, added[0] if added else None)


async def _store_and_fail(conn: AsyncConnection, letter: DeadLetter, message: WorkMessage, order: Order) -> None:
    cursor = await conn.execute(TAKE_POISON_MARK, [message.event_id], prepare=True)
    mark = await cursor.fetchone()
    kind: DeadLetterKind = "deadly" if mark else "undeliverable"
    reason = mark[0] if mark else UNDELIVERABLE if letter.given_up else UNEXPLAINED
    await _insert(conn, letter, kind, reason, message)
    if order.status not in TERMINAL:
        event = _failed(order, reason)
        row = [
            reason, kind, attempt_log.own_name(), reason, order.order_id, order.order_id,
            event.event_id, order.order_id, event.body, event.traceparent,
        ]  # fmt: skip
        await conn.execute(FAIL_ORDER, row, prepare=True)


async def _insert(
    conn: AsyncConnection, letter: DeadLetter, kind: DeadLetterKind, reason: str, message: WorkMessage | None = None
) -> None:
    """Insert a dead letter; without a `message` it belongs to no order."""
    fingerprint = message.event_id.bytes if message else sha256(letter.body).digest()
    order_id, event_id = (message.order_id, message.event_id) if message else (None, None)
    body = letter.body[:MAX_STORED_BYTES]
    row = [fingerprint, order_id, event_id, kind, storable_text(reason), letter.size, body]
    await conn.execute(INSERT, row, prepare=True)


def _failed(order: Order, reason: str) -> Event:
    data = data_of(order, status="failed", version=order.version + 1, reason=reason)
    return events.event_of("order.failed", data, continue_trace(None))


async def groups(conn: AsyncConnection, reason: str | None) -> list[ReasonGroup]:
    """Return the dead letters by reason, the largest group first."""
    async with conn.cursor(row_factory=class_row(ReasonGroup)) as cursor:
        return await (await cursor.execute(GROUPS, {"reason": reason})).fetchall()


async def count_dead(conn: AsyncConnection, limit: int) -> int:
    """Return how many dead letters wait for an operator, `limit` at most."""
    row = await (await conn.execute(COUNT_DEAD, [limit])).fetchone()
    return row[0] if row else 0


async def select(conn: AsyncConnection, selection: LetterSelection, *, above: int, limit: int) -> list[SelectedLetter]:
    """Return the next `limit` dead letters of a selection, with ids above `above`, in their order."""
    asked = {
        "ids": None if selection.ids is None else list(selection.ids), "reason": selection.reason,
        "above": above, "limit": limit,
    }  # fmt: skip
    async with conn.cursor(row_factory=class_row(SelectedLetter)) as cursor:
        return await (await cursor.execute(SELECT, asked)).fetchall()


async def show(conn: AsyncConnection, letter: str) -> dict[str, object] | None:
    """Return all that is known of a letter, given by its own id or its order's; None if there is none."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        found = await (await cursor.execute(SHOW, {"id": letter})).fetchone()
        if found is not None:
            found["audit"] = await (await cursor.execute(AUDIT, [found["id"]])).fetchall()
    return found


async def discard(conn: AsyncConnection, letter: str, actor: str, reason: str) -> list[int]:
    """Settle a letter for good; its order stays as it is. Returns the letters that were dead until now."""
    cursor = await conn.execute(DISCARD, {"id": letter, "actor": actor, "reason": reason})
    return [row[0] for row in await cursor.fetchall()]
