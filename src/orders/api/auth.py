"""Who asks: API keys, kept in memory so that no request pays for a query.

A key in use is looked up once, and then confirmed every second together with all the others, by one statement. So a
revoked key is refused about a second later. While the database is away nothing is confirmed, and after TRUST_SECONDS
no key is believed any more.
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

ANONYMOUS = ""  # all who have no key are one client

CONFIRM_SECONDS = 1.0
TRUST_SECONDS = 5.0
DISTRUST_SECONDS = 1.0  # for which a key that is not there is refused unasked
IDLE_SECONDS = 60.0  # after which a key that nobody uses is forgotten
MOST_KEYS = 10_000  # in memory; more of them in use only cost lookups

_KEY = re.compile(r"orders_([0-9a-f]{12})_[A-Za-z0-9_-]{43}").fullmatch


class _Seen:
    """What is known of a key, since when, and when it was used last."""

    __slots__ = ("confirmed", "key", "used")

    def __init__(self, key: ClientKey | None, now: float) -> None:
        self.key = key
        self.confirmed = now
        self.used = now


class Clients:
    """Knows whom the keys in use belong to; `confirm` is a job of the process's periodic connection."""

    def __init__(self, *, required: bool) -> None:
        self.required = required
        self._seen: dict[KeyId, _Seen] = {}

    async def client_of(self, authorization: str | None, find: Callable[[KeyId], Awaitable[ClientKey | None]]) -> str:
        """Return whom an Authorization header speaks for; raise Unauthorized if it is for nobody.

        `find` looks a key up; it is asked for a key that was not seen lately.
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
        """Say whether there is a key to confirm."""
        return bool(self._seen)

    async def confirm(self, conn: AsyncConnection) -> None:
        """Ask once for all valid keys in use, and forget the others."""
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

    def _remember(self, key_id: KeyId, key: ClientKey | None) -> _Seen:
        while len(self._seen) >= MOST_KEYS:
            del self._seen[next(iter(self._seen))]
        seen = self._seen[key_id] = _Seen(key, asyncio.get_running_loop().time())
        return seen


def new_key(client: str) -> tuple[str, KeyId, ClientKey]:
    """Make an API key: the key itself, which is shown once, and what is stored of it."""
    key_id = secrets.token_hex(6)
    token = f"orders_{key_id}_{secrets.token_urlsafe(32)}"
    return token, KeyId(key_id), ClientKey(client, sha256(token.encode()).digest())
