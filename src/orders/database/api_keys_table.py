"""Clients and their API keys: who may speak for whom. Only the SHA-256 of a key is stored."""

from collections.abc import Sequence
from datetime import datetime
from typing import LiteralString, NamedTuple

import msgspec
from psycopg import AsyncConnection

COLUMNS: LiteralString = "key_id, client, sha256"

COLUMNS_ARE_THERE: LiteralString = f"SELECT {COLUMNS}, created_at, revoked_at FROM client_keys LIMIT 0"

READ_MANY: LiteralString = f"""
    SELECT {COLUMNS} FROM client_keys WHERE key_id = ANY(%b::text[]) AND revoked_at IS NULL
"""
ADD: LiteralString = f"INSERT INTO client_keys ({COLUMNS}) VALUES (%s, %s, %s)"
LIST: LiteralString = """
    SELECT client, key_id, created_at, revoked_at FROM client_keys ORDER BY client, created_at
"""
REVOKE: LiteralString = """
    UPDATE client_keys SET revoked_at = clock_timestamp()
    WHERE client = %(client)s AND key_id = coalesce(%(key_id)s::text, key_id) AND revoked_at IS NULL
    RETURNING key_id
"""


class KeyId(NamedTuple):
    """The part of an API key that finds its row."""

    key_id: str


class ClientKey(msgspec.Struct, frozen=True):
    """A key that is valid: whose it is, and what it has to hash to."""

    client: str
    sha256: bytes


class Listed(NamedTuple):
    """A key as people see it."""

    client: str
    key_id: str
    created_at: datetime
    revoked_at: datetime | None


async def read_many(conn: AsyncConnection, key_ids: Sequence[KeyId]) -> dict[KeyId, ClientKey]:
    """Return those of the keys that are there and not revoked."""
    cursor = await conn.execute(READ_MANY, [[each.key_id for each in key_ids]], prepare=True)
    return {KeyId(row[0]): ClientKey(row[1], row[2]) for row in await cursor.fetchall()}


async def add(conn: AsyncConnection, key_id: KeyId, key: ClientKey) -> None:
    """Store a new key."""
    await conn.execute(ADD, [key_id.key_id, key.client, key.sha256])


async def list_all(conn: AsyncConnection) -> list[Listed]:
    """Return every key there ever was."""
    cursor = await conn.execute(LIST)
    return [Listed(*row) for row in await cursor.fetchall()]


async def revoke(conn: AsyncConnection, client: str, key_id: str | None) -> list[str]:
    """Revoke a client's key, or all of its keys; return the ids of those that were valid until now."""
    cursor = await conn.execute(REVOKE, {"client": client, "key_id": key_id})
    return [row[0] for row in await cursor.fetchall()]
