"""Every statement that only reads dead letters, or settles one without its order."""

from collections.abc import Sequence
from datetime import datetime
from typing import LiteralString

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row

GROUPS: LiteralString = """
    SELECT d.kind, d.reason, count(*) AS letters, count(*) FILTER (WHERE o.status = 'failed') AS redrivable,
           min(d.died_at) AS oldest, max(d.died_at) AS newest, min(d.id) AS first_id, max(d.id) AS last_id
    FROM dead_letters d LEFT JOIN orders o ON o.order_id = d.order_id
    WHERE d.state = 'dead' AND (%(reason)s::text IS NULL OR strpos(lower(d.reason), lower(%(reason)s)) > 0)
    GROUP BY d.kind, d.reason ORDER BY letters DESC, d.kind, d.reason
"""

# `ids` are of letters or, as text, of orders.
CHOSEN: LiteralString = """
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

DISCARD: LiteralString = """
    WITH discarded AS (
        UPDATE dead_letters SET state = 'discarded', settled_at = clock_timestamp()
        WHERE state = 'dead' AND (id::text = %(id)s OR order_id::text = %(id)s)
        RETURNING id, order_id
    )
    INSERT INTO dead_letter_audit (actor, command, letter_id, order_id, reason)
    SELECT %(actor)s, 'discard', id, order_id, %(reason)s FROM discarded
    RETURNING letter_id
"""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The dead letters of one reason."""

    kind: str
    reason: str
    letters: int
    redrivable: int
    oldest: datetime
    newest: datetime
    first_id: int
    last_id: int


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter that a command is about."""

    id: int
    kind: str
    reason: str
    is_redrivable: bool | None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters: these ids (of letters or orders), or those whose reason contains a text; neither is all."""

    ids: Sequence[str] | None = None
    reason: str | None = None


async def groups(conn: AsyncConnection, reason: str | None) -> list[Group]:
    """Return the dead letters by reason, the largest group first."""
    async with conn.cursor(row_factory=class_row(Group)) as cursor:
        return await (await cursor.execute(GROUPS, {"reason": reason})).fetchall()


async def chosen(conn: AsyncConnection, choice: Choice, *, above: int, limit: int) -> list[Chosen]:
    """Return the next dead letters of a choice above an id."""
    asked = {
        "ids": None if choice.ids is None else list(choice.ids), "reason": choice.reason, "above": above, "limit": limit
    }  # fmt: skip
    async with conn.cursor(row_factory=class_row(Chosen)) as cursor:
        return await (await cursor.execute(CHOSEN, asked)).fetchall()


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
