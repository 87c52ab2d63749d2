"""The table `client_keys`: the clients' API keys. Only the SHA-256 of a key is stored."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, LiteralString, NamedTuple, get_args

import msgspec
from psycopg import AsyncConnection

Scope = Literal["orders:place", "orders:read", "orders:cancel"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

COLUMNS: LiteralString = "key_id, client, sha256, scopes"

COLUMNS_ARE_THERE: LiteralString = f"""
    SELECT {COLUMNS}, name, created_at, expires_at, last_used_at, revoked_at FROM client_keys LIMIT 0
"""

IS_VALID: LiteralString = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())"

READ_MANY: LiteralString = f"""
    SELECT {COLUMNS} FROM client_keys WHERE key_id = ANY(%b::text[]) AND {IS_VALID}
"""
ADD: LiteralString = f"""
    INSERT INTO client_keys ({COLUMNS}, name, expires_at)
    VALUES (%(key_id)s, %(client)s, %(sha256)s, %(scopes)s, %(name)s, clock_timestamp() + %(lifetime)s::interval)
"""
LIST: LiteralString = """
    SELECT client, key_id, name, scopes, created_at, expires_at, last_used_at, revoked_at
    FROM client_keys ORDER BY client, created_at
"""
READ_NEWEST: LiteralString = f"""
    SELECT name, scopes FROM client_keys
    WHERE client = %(client)s AND key_id = coalesce(%(key_id)s::text, key_id) AND {IS_VALID}
    ORDER BY created_at DESC LIMIT 1
"""
REVOKE: LiteralString = """
    UPDATE client_keys SET revoked_at = clock_timestamp()
    WHERE client = %(client)s AND key_id = coalesce(%(key_id)s::text, key_id) AND revoked_at IS NULL
    RETURNING key_id
"""
END_OTHERS: LiteralString = f"""
    UPDATE client_keys SET expires_at = clock_timestamp() + %(overlap)s::interval
    WHERE client = %(client)s AND key_id <> %(new)s AND key_id = coalesce(%(key_id)s::text, key_id) AND {IS_VALID}
      AND (expires_at IS NULL OR expires_at > clock_timestamp() + %(overlap)s::interval)
    RETURNING key_id
"""
# Several apis tell of the same key, one after the other: the first one's word is enough for a minute. A row that is
# locked is left out, or all that the connection does would wait for it.
USED: LiteralString = """
    UPDATE client_keys SET last_used_at = clock_timestamp() WHERE key_id = ANY(ARRAY(
        SELECT key_id FROM client_keys
        WHERE key_id = ANY(%b::text[])
          AND (last_used_at IS NULL OR last_used_at < statement_timestamp() - interval '50 seconds')
        FOR NO KEY UPDATE SKIP LOCKED
    ))
"""


class KeyId(NamedTuple):
    """The public part of an API key, by which its row is found."""

    key_id: str


class ClientKey(msgspec.Struct, frozen=True):
    """A valid key: the client that it belongs to, the SHA-256 of the secret, and what it may do."""

    client: str
    sha256: bytes
    scopes: frozenset[Scope] = frozenset(SCOPES)


class Listed(NamedTuple):
    """A key as `orders clients list` shows it."""

    client: str
    key_id: str
    name: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class Template(NamedTuple):
    """What a new key takes over from the one that it replaces."""

    name: str
    scopes: list[Scope]


async def read_many(conn: AsyncConnection, key_ids: Sequence[KeyId]) -> dict[KeyId, ClientKey]:
    """Return the keys that exist, are not revoked and have not expired; the others are left out."""
    cursor = await conn.execute(READ_MANY, [[key_id.key_id for key_id in key_ids]], prepare=True)
    return {KeyId(row[0]): ClientKey(row[1], row[2], frozenset(row[3])) for row in await cursor.fetchall()}


async def add(
    conn: AsyncConnection, key_id: KeyId, key: ClientKey, name: str = "", lifetime: timedelta | None = None
) -> None:
    """Store a new key, which expires after `lifetime`; None: never.

    Raises psycopg.errors.UniqueViolation if the id exists.
    """
    await conn.execute(
        ADD,
        {
            "key_id": key_id.key_id, "client": key.client, "sha256": key.sha256, "scopes": sorted(key.scopes),
            "name": name, "lifetime": lifetime,
        },
    )  # fmt: skip


async def list_all(conn: AsyncConnection) -> list[Listed]:
    """Return every key, also expired and revoked ones, by client and time."""
    cursor = await conn.execute(LIST)
    return [Listed(*row) for row in await cursor.fetchall()]


async def read_newest(conn: AsyncConnection, client: str, key_id: str | None) -> Template | None:
    """Return what the newest valid key of a client has, or that with the id; None if there is none."""
    row = await (await conn.execute(READ_NEWEST, {"client": client, "key_id": key_id})).fetchone()
    return Template(*row) if row else None


async def revoke(conn: AsyncConnection, client: str, key_id: str | None) -> list[str]:
    """Revoke one key of a client, or all if `key_id` is None; return the ids of the keys that were valid until now."""
    cursor = await conn.execute(REVOKE, {"client": client, "key_id": key_id})
    return [row[0] for row in await cursor.fetchall()]


async def end_others(
    conn: AsyncConnection, client: str, new: KeyId, key_id: str | None, overlap: timedelta
) -> list[str]:
    """Let the client's other keys, or the one with the id, expire after `overlap`; return their ids."""
    given = {"client": client, "new": new.key_id, "key_id": key_id, "overlap": overlap}
    return [row[0] for row in await (await conn.execute(END_OTHERS, given)).fetchall()]


async def used(conn: AsyncConnection, key_ids: Sequence[KeyId]) -> None:
    """Store that these keys were in use just now, except for those whose rows another session has locked."""
    await conn.execute(USED, [[key_id.key_id for key_id in key_ids]], prepare=True)
