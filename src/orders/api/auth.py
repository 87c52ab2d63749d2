"""Authentication by API keys, which are kept in memory to spare each request a query.

The first request with a key looks it up. One statement a second then confirms all keys in use, and therefore the api
refuses a revoked or expired key about a second later, and ends the streams that it opened. While the database is away,
the api accepts a key for TRUST_SECONDS after its last confirmation.
"""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable
from hashlib import sha256
from hmac import compare_digest

import msgspec
from prometheus_client import Counter
from psycopg import AsyncConnection

from orders.database import api_keys_table
from orders.database.api_keys_table import SCOPES, ClientKey, KeyId, Scope
from orders.model.errors import Forbidden, Unauthorized

ANONYMOUS = ""  # the client of every request without a key

CONFIRM_SECONDS = 1.0
TRUST_SECONDS = 5.0
DISTRUST_SECONDS = 1.0  # after a look-up found no such key, the api refuses it for this long without another
IDLE_SECONDS = 60.0  # a key without a request for this long leaves the memory
USED_SECONDS = 60.0  # between two writes of a key's last use
MAX_KEYS = 10_000  # in memory; more keys in use cost more look-ups

# nginx counts a client's requests by the key id that this pattern finds, so there is one spelling of it.
_KEY = re.compile(r"(?i:bearer) (orders_([0-9a-f]{12})_[A-Za-z0-9_-]{43})").fullmatch

# A key that leaves the memory takes its series along: there are never more than MAX_KEYS.
REQUESTS = Counter("orders_key_requests_total", "Requests with a valid API key, by the key's id", ["key_id"])


class Caller(msgspec.Struct, frozen=True):
    """Whose request it is.

    `key_id`: of its API key; None for the anonymous client. `until`: the time of the loop at which the request's
    patience ends; None: it has not begun.
    """

    client: str
    key_id: KeyId | None = None
    until: float | None = None


class _CachedKey:
    """An API key as the database had it, when it was confirmed and when it was last used, both in the loop's time."""

    __slots__ = ("confirmed", "key", "requests", "told", "used")

    def __init__(self, now: float) -> None:
        self.key: ClientKey | None = None
        self.confirmed = now
        self.used = now
        self.told = float("-inf")  # when its last use was written
        self.requests: Counter | None = None


class Authenticator:
    """Maps the keys in use to their clients; `confirm` is a job of the process's periodic connection."""

    def __init__(self, *, required: bool) -> None:
        self.required = required
        #: Whether a stream is open that came with this key, and what ends those of a key that is no longer valid.
        self.is_watching: Callable[[KeyId], bool] = lambda key_id: False
        self.end_streams: Callable[[KeyId], object] = lambda key_id: None
        self._seen: dict[KeyId, _CachedKey] = {}

    async def authenticate(
        self, authorization: str | None, scope: Scope, find: Callable[[KeyId], Awaitable[ClientKey | None]]
    ) -> Caller:
        """Return the caller whose key an Authorization header has: the anonymous client without a header.

        `find` looks a key up in the database, for a key that is not in memory or not confirmed lately.
        Raises Unauthorized if the header is malformed, the key is not valid, or a required key is missing, and
        Forbidden if the key lacks `scope`.
        """
        if authorization is None:
            if self.required:
                raise Unauthorized("An API key is required: send Authorization: Bearer <key>.")
            return _ANONYMOUS
        match = _KEY(authorization)
        if match is None:
            raise Unauthorized
        token, key_id = match[1], KeyId(match[2])
        now = asyncio.get_running_loop().time()
        seen = self._seen.get(key_id)
        if seen is None or now - seen.confirmed > (TRUST_SECONDS if seen.key else DISTRUST_SECONDS):
            seen = self._remember(key_id, await find(key_id))
        seen.used = now
        if seen.key is None or not compare_digest(seen.key.sha256, sha256(token.encode()).digest()):
            raise Unauthorized
        if seen.requests is not None:
            seen.requests.inc()
        if scope not in seen.key.scopes:
            raise Forbidden(f"This API key has no scope {scope}.")
        return Caller(seen.key.client, key_id)

    def is_valid(self, key_id: KeyId | None) -> bool:
        """Return whether a key was valid when it was confirmed last; None, the anonymous client's, always is."""
        if key_id is None:
            return True
        seen = self._seen.get(key_id)
        return seen is not None and seen.key is not None

    def has_any(self) -> bool:
        """Return whether there is a key to confirm."""
        return bool(self._seen)

    async def confirm(self, conn: AsyncConnection) -> None:
        """Read all valid keys in use by one statement, and forget those that nothing used for IDLE_SECONDS.

        Once in USED_SECONDS a second statement stores which keys were in use.
        """
        now = asyncio.get_running_loop().time()
        for key_id, seen in list(self._seen.items()):
            if self.is_watching(key_id):
                seen.used = now
            elif now - seen.used >= IDLE_SECONDS:
                self._forget(key_id)
        valid = [key_id for key_id, seen in self._seen.items() if seen.key is not None]
        if not valid:
            return
        found = await api_keys_table.read_many(conn, valid)
        for key_id in valid:
            if key_id in self._seen:
                self._remember(key_id, found.get(key_id))
                if key_id not in found:
                    self.end_streams(key_id)
        in_use = [
            key_id
            for key_id, seen in self._seen.items()
            if seen.key is not None and seen.used > seen.told and now - seen.told >= USED_SECONDS
        ]
        if in_use:
            await api_keys_table.used(conn, in_use)
            for key_id in self._seen.keys() & in_use:
                self._seen[key_id].told = now

    def _remember(self, key_id: KeyId, key: ClientKey | None) -> _CachedKey:
        now = asyncio.get_running_loop().time()
        seen = self._seen.get(key_id)
        if seen is None:
            if len(self._seen) >= MAX_KEYS:
                self._make_room()
            seen = self._seen[key_id] = _CachedKey(now)
        seen.key = key
        seen.confirmed = now
        if key is not None and seen.requests is None:
            seen.requests = REQUESTS.labels(key_id.key_id)
        return seen

    def _make_room(self) -> None:
        """Forget the oldest key, one that was refused if there is any: who invents keys displaces no client's."""
        refused = (key_id for key_id, seen in self._seen.items() if seen.key is None)
        self._forget(next(refused, next(iter(self._seen))))

    def _forget(self, key_id: KeyId) -> None:
        if self._seen.pop(key_id).requests is not None:
            REQUESTS.remove(key_id.key_id)


_ANONYMOUS = Caller(ANONYMOUS)


def new_key(client: str, scopes: frozenset[Scope] = frozenset(SCOPES)) -> tuple[str, KeyId, ClientKey]:
    """Make an API key; return the key itself, which the operator sees once, its id, and the row to store."""
    key_id = secrets.token_hex(6)
    token = f"orders_{key_id}_{secrets.token_urlsafe(32)}"
    return token, KeyId(key_id), ClientKey(client, sha256(token.encode()).digest(), scopes)
