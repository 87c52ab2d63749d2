"""Idempotency keys: which order a client's key stands for, and what was answered first."""

from collections.abc import Sequence
from typing import LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

COLUMNS_ARE_THERE: LiteralString = """
    SELECT client, operation, key, fingerprint, order_id, answer, created_at FROM idempotency_keys LIMIT 0
"""

READ_MANY: LiteralString = """
    SELECT k.client, k.operation, k.key, k.fingerprint, k.order_id, k.answer
    FROM unnest(%b::text[], %b::text[], %b::text[]) AS asked (client, operation, key)
    JOIN idempotency_keys k USING (client, operation, key)
"""


class Key(NamedTuple):
    """A key within its scope; keys sort, so that every batch takes its keys in the same order."""

    client: str
    operation: str
    key: str


class FirstUse(NamedTuple):
    """What a key was first used for."""

    fingerprint: bytes
    order_id: UUID
    answer: bytes


async def read_many(conn: AsyncConnection, keys: Sequence[Key]) -> dict[Key, FirstUse]:
    """Return the first use of each key that has one."""
    columns = [list(column) for column in zip(*keys, strict=True)]
    cursor = await conn.execute(READ_MANY, columns, prepare=True)
    return {Key(*row[:3]): FirstUse(*row[3:]) for row in await cursor.fetchall()}
