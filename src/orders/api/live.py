"""Live status: one statement per tick for all orders that the streams and waits of this process watch.

A tick keeps no state: each watcher passes the version that it has seen, and a tick answers with the newest status
above it. Changes between two ticks coalesce, and no watcher misses the last one.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from uuid import UUID

import msgspec
from prometheus_client import Counter, Gauge
from psycopg import AsyncConnection

from orders.api.auth import Caller
from orders.api.shares import Shares
from orders.database import orders_table
from orders.database.api_keys_table import KeyId
from orders.database.orders_table import StatusNow
from orders.model.errors import Overloaded, TooManyRequests
from orders.model.order import TERMINAL

TICK_SECONDS = 0.1
HEARTBEAT_SECONDS = 10.0  # nginx and other proxies close a connection after a minute of silence
MAX_WATCHERS = 10_000  # each is a task and an open connection

WATCHERS = Gauge("orders_watchers", "Streams of events, and requests that wait for a change")
TICKS = Counter("orders_watch_ticks_total", "Statements for the newest status of all that is watched")

_encode = msgspec.json.Encoder().encode


class Live:
    """The watchers of this process by the order they watch; `tick` is a job of the process's periodic connection."""

    def __init__(self, share: float = 1.0) -> None:
        """`share`: the part of MAX_WATCHERS that one client may have."""
        self.closed = False
        self.on_first_watcher: Callable[[], object] = lambda: None  # called when the first watcher arrives
        self._waiting: dict[UUID, dict[asyncio.Future[StatusNow | None], int]] = {}
        self._watchers = 0
        self._shares = Shares(MAX_WATCHERS, share)
        self._of_key: dict[KeyId, set[asyncio.Future[StatusNow | None]]] = {}

    def is_watched(self) -> bool:
        """Return whether there is a watcher, and therefore a reason to tick."""
        return bool(self._waiting)

    def close(self) -> None:
        """End every stream and wait at once, later ones too; their clients resume at another api."""
        self.closed = True
        for futures in self._waiting.values():
            for future in futures:
                _settle(future, None)

    def is_watching(self, key_id: KeyId) -> bool:
        """Return whether a stream or wait is open that came with this API key."""
        return key_id in self._of_key

    def end_streams(self, key_id: KeyId) -> None:
        """Wake the streams and waits that came with an API key: it is no longer valid, and they end."""
        for future in self._of_key.get(key_id, ()):
            _settle(future, None)

    def require_room(self, caller: Caller) -> None:
        """Raise TooManyRequests if the caller has its share of watchers."""
        self._shares.require_room(caller.client)

    async def tick(self, conn: AsyncConnection) -> None:
        """Read the newest status of all watched orders by one statement, and wake the watchers of the changed ones."""
        TICKS.inc()
        order_ids = list(self._waiting)
        versions = [min(self._waiting[order_id].values()) for order_id in order_ids]
        for now in await orders_table.changed(conn, order_ids, versions):
            for future, seen in self._waiting.get(now.order_id, {}).items():
                if now.version > seen:
                    _settle(future, now)

    async def change(self, order_id: UUID, seen: int, seconds: float, caller: Caller) -> StatusNow | None:
        """Return an order's newest status once its version is above `seen`.

        Returns None if that takes longer than `seconds`, the caller's key ends, or the process stops.
        Raises Overloaded if MAX_WATCHERS are watching already, and TooManyRequests if too many of those are the
        caller's.
        """
        if self.closed:
            return None
        if self._watchers >= MAX_WATCHERS:
            raise Overloaded
        self._shares.take(caller.client)
        self._watchers += 1
        WATCHERS.set(self._watchers)
        future: asyncio.Future[StatusNow | None] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self.on_first_watcher()
        self._waiting.setdefault(order_id, {})[future] = seen
        if caller.key_id:
            self._of_key.setdefault(caller.key_id, set()).add(future)
        timer = asyncio.get_running_loop().call_later(seconds, _settle, future, None)
        try:
            return await future
        finally:
            timer.cancel()
            self._shares.give_back(caller.client)
            self._watchers -= 1
            WATCHERS.set(self._watchers)
            futures = self._waiting[order_id]
            del futures[future]
            if not futures:
                del self._waiting[order_id]
            if caller.key_id and (others := self._of_key.get(caller.key_id)) is not None:
                others.discard(future)
                if not others:
                    del self._of_key[caller.key_id]

    async def events(
        self, now: StatusNow, seen: int | None, caller: Caller, is_valid: Callable[[KeyId | None], bool]
    ) -> AsyncIterator[bytes]:
        """Yield server-sent events: the status now, then the newest one after each change, until the order has ended.

        `seen` is the version that the client knows already: it gets no event for it. None: it knows none.
        `is_valid` is asked before each event whether the caller's key still is; if not, the stream ends.

        https://html.spec.whatwg.org/multipage/server-sent-events.html
        """
        yield b"retry: 500\n\n"  # milliseconds until a client reconnects after its stream was cut
        if seen is None or seen < now.version:
            yield _event(now)
        while now.status not in TERMINAL and not self.closed:
            try:
                newer = await self.change(now.order_id, now.version, HEARTBEAT_SECONDS, caller)
            except (Overloaded, TooManyRequests):
                return
            if not is_valid(caller.key_id):
                return
            if newer is not None:
                now = newer
                yield _event(now)
            elif not self.closed:
                yield b": still here\n\n"


def _settle(future: asyncio.Future[StatusNow | None], now: StatusNow | None) -> None:
    if not future.done():
        future.set_result(now)


def _event(now: StatusNow) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (now.version, _encode(now))
