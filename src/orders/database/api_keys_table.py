"""The table `client_keys`: the clients' API keys. Only the SHA-256 of a key is stored."""

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
    """The public part of an API key, by which its row is found."""

    key_id: str


class ClientKey(msgspec.Struct, frozen=True):
    """A valid key: the client that it belongs to, and the SHA-256 of the secret."""

    client: str
    sha256: bytes


class Listed(NamedTuple):
    """A key as `orders clients list` shows it."""

    client: str
    key_id: str
    created_at: datetime
    revoked_at: datetime | None


async def read_many(conn: AsyncConnection, key_ids: Sequence[KeyId]) -> dict[KeyId, ClientKey]:
    """Return the keys that exist and are not revoked; the others are left out."""
    cursor = await conn.execute(READ_MANY, [[key_id.key_id for key_id in key_ids]], prepare=True)
    return {KeyId(row[0]): ClientKey(row[1], row[2]) for row in await cursor.fetchall()}


async def add(conn: AsyncConnection, key_id: KeyId, key: ClientKey) -> None:
    """Store a new key. Raises psycopg.errors.UniqueViolation if the id exists."""
    await conn.execute(ADD, [key_id.key_id, key.client, key.sha256])


async def list_all(conn: AsyncConnection) -> list[Listed]:
    """Return every key, also revoked ones, by client and time."""
    cursor = await conn.execute(LIST)
    return [Listed(*row) for row in await cursor.fetchall()]


async def revoke(conn: AsyncConnection, client: str, key_id: str | None) -> list[str]:
    """Revoke one key of a client, or all if `key_id` is None; return the ids of the keys that were valid until now."""
    cursor = await conn.execute(REVOKE, {"client": client, "key_id": key_id})
    return [row[0] for row in await cursor.fetchall()]
