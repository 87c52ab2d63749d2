"""Authentication by API keys, which are kept in memory to spare each request a query.

The first request with a key looks it up. One statement a second then confirms all keys in use, and therefore the api
refuses a revoked key about a second later. While the database is away, the api accepts a key for TRUST_SECONDS after
its last confirmation.
"""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable
from hashlib import sha256
from hmac import compare_digest

from psycopg import AsyncConnection

from orders.database import api_keys_table
from orders.database.api_keys_table import ClientKey, KeyId
from orders.model.errors import Unauthorized

ANONYMOUS = ""  # the client of every request without a key

CONFIRM_SECONDS = 1.0
TRUST_SECONDS = 5.0
DISTRUST_SECONDS = 1.0  # after a look-up found no such key, the api refuses it for this long without another
IDLE_SECONDS = 60.0  # a key without a request for this long leaves the memory
MAX_KEYS = 10_000  # in memory; more keys in use cost more look-ups

_KEY = re.compile(r"orders_([0-9a-f]{12})_[A-Za-z0-9_-]{43}").fullmatch


class _CachedKey:
    """An API key as the database had it, when it was confirmed and when it was last used, both in the loop's time."""

    __slots__ = ("confirmed", "key", "used")

    def __init__(self, key: ClientKey | None, now: float) -> None:
        self.key = key
        self.confirmed = now
        self.used = now


class Authenticator:
    """Maps the keys in use to their clients; `confirm` is a job of the process's periodic connection."""

    def __init__(self, *, required: bool) -> None:
        self.required = required
        self._seen: dict[KeyId, _CachedKey] = {}

    async def client_of(self, authorization: str | None, find: Callable[[KeyId], Awaitable[ClientKey | None]]) -> str:
        """Return the client whose key an Authorization header has: its name, or ANONYMOUS without a header.

        `find` looks a key up in the database, for a key that is not in memory or not confirmed lately.
        Raises Unauthorized if the header is malformed, the key is not valid, or a required key is missing.
        """
        if authorization is None:
            if self.required:
                raise Unauthorized("An API key is required: send Authorization: Bearer <key>.")
            return ANONYMOUS
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        match = _KEY(token) if scheme.lower() == "bearer" else None
        if match is None:
            raise Unauthorized
        key_id = KeyId(match[1])
        now = asyncio.get_running_loop().time()
        seen = self._seen.get(key_id)
        if seen is None or now - seen.confirmed > (TRUST_SECONDS if seen.key else DISTRUST_SECONDS):
            seen = self._remember(key_id, await find(key_id))
        seen.used = now
        if seen.key is None or not compare_digest(seen.key.sha256, sha256(token.encode()).digest()):
            raise Unauthorized
        return seen.key.client

    def has_any(self) -> bool:
        """Return whether there is a key to confirm."""
        return bool(self._seen)

    async def confirm(self, conn: AsyncConnection) -> None:
        """Read all valid keys in use by one statement, and forget those that no request used for IDLE_SECONDS."""
        now = asyncio.get_running_loop().time()
        self._seen = {key_id: seen for key_id, seen in self._seen.items() if now - seen.used < IDLE_SECONDS}
        valid = [key_id for key_id, seen in self._seen.items() if seen.key is not None]
        if not valid:
            return
        found = await api_keys_table.read_many(conn, valid)
        for key_id in valid:
            if (seen := self._seen.get(key_id)) is not None:
                seen.key = found.get(key_id)
                seen.confirmed = now

    def _remember(self, key_id: KeyId, key: ClientKey | None) -> _CachedKey:
        while len(self._seen) >= MAX_KEYS:
            del self._seen[next(iter(self._seen))]
        seen = self._seen[key_id] = _CachedKey(key, asyncio.get_running_loop().time())
        return seen


def new_key(client: str) -> tuple[str, KeyId, ClientKey]:
    """Make an API key; return the key itself, which the operator sees once, its id, and the row to store."""
    key_id = secrets.token_hex(6)
    token = f"orders_{key_id}_{secrets.token_urlsafe(32)}"
    return token, KeyId(key_id), ClientKey(client, sha256(token.encode()).digest())
