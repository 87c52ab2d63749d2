"""Proves, after the broker's confirms and before anything is recorded, that required rows reached their queues.

A confirm says that a queue has the message, but not which queue. So each required queue gets a sentinel: an exchange
with a name that is never used twice, bound to this queue alone. It is internal, so that no client can publish to it,
and auto-delete, so that RabbitMQ deletes it together with the last queue bound to it. If the sentinel exists after a
confirm, its queue existed all the time since before the publish. A passive declare of the queue would not show that it
was deleted and declared again in between. The check costs the broker one look-up and the queue nothing. The relays of
one outbox share the sentinels through the table `outbox_witness`, so that none is left behind.

AMQP shows no bindings. The management interface does, and the guard asks it at the same moment.

Within a claim the guard checks before each wave but the first, too: if a queue missed the first event of a key, it must
not get the second one before the first is published again.
"""

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import AsyncIterator, Collection
from typing import Any

from aiormq.abc import AbstractChannel

from relay import outbox_table
from relay.database import STATEMENT_SECONDS, Connection, deadline
from relay.management import Binding, Management, ManagementUnavailable
from relay.message import Route
from relay.publisher import BrokerLost, Denied, Publisher
from relay.settings import Settings
from relay.topology import TopologyWrong, complaint_about, leads_to_one, unbound

NAME_BYTES = 200  # of the queue's name in the name of its sentinel, which may have 255
# A binding that was seen so recently is not looked up before a publish. The look-up after the publish cannot show that
# a binding was away and put back, so without the first look-up the messages in between might have missed their queue.
SEEN_SECONDS = 0.25
COMPLETE_SECONDS = 0.3  # between two looks for a required queue that is missing


class Guard:
    """Knows which routes required rows may take, and proves after the confirms that they led to their queues.

    Each claimer has a guard of its own. A method that talks to the broker raises BrokerLost when that is gone.
    """

    def __init__(self, settings: Settings, publisher: Publisher) -> None:
        self._publisher = publisher
        self._queues = settings.queue_names
        self._routes = frozenset(settings.routes)
        self._management_urls = settings.management_urls
        self._management: Management | None = None
        self._sentinels: dict[str, str] = {}  # queue: exchange
        self._complete_at = 0.0
        self._trouble = ""  # why a queue has no sentinel
        self._missed: dict[Route, str] = {}  # routes without a binding while messages of this claim were out, and why
        self._seen_at: dict[Route, float] = {}  # when a route was last seen to be bound, in monotonic seconds

    @property
    def is_complete(self) -> bool:
        """Whether each required queue has its sentinel."""
        return len(self._sentinels) == len(self._queues)

    def forget(self) -> None:
        """Forget the sentinels, so that `complete` looks for them again; close what waits for the next claim."""
        self._sentinels.clear()
        if self._management is not None:
            self._management.close()

    async def complete_if_due(self, conn: Connection, now: float) -> None:
        """Call `complete` if a sentinel is missing, at most every `COMPLETE_SECONDS`."""
        if not self.is_complete and now >= self._complete_at:
            self._complete_at = now + COMPLETE_SECONDS
            await self.complete(conn)

    async def complete(self, conn: Connection) -> str:
        """Find or make the missing sentinels, outside of a transaction; return what is in the way, "" if nothing is.

        Raises DatabaseLost.
        """
        self._trouble = ""
        for queue in self._queues:
            if queue not in self._sentinels:
                try:
                    self._sentinels[queue] = await self._find_or_make(conn, queue)
                except Denied as error:
                    self._trouble = f"queue {queue!r} cannot be given a sentinel: {error}"
                    break
                except TopologyWrong as error:
                    self._trouble = str(error)
                    break
        return self._trouble

    async def before(self, routes: Collection[Route]) -> dict[Route, str]:
        """Begin a claim: return which of these routes required rows cannot take now, and why."""
        self._missed.clear()
        return await self._closed(routes)

    @contextlib.asynccontextmanager
    async def watching(self, routes: Collection[Route]) -> AsyncIterator[None]:
        """Within the block, look at the bindings of these routes again and again.

        While confirms take long, a binding may be removed, and be back before the look that follows the confirms.
        """
        bound = self._routes.intersection(routes)
        if not bound:
            yield
            return
        looks = asyncio.create_task(self._watch(bound), name="relay-bindings")
        try:
            yield
        finally:
            looks.cancel()
            await asyncio.wait([looks])
            if not looks.cancelled():
                looks.result()

    async def between(self, routes: Collection[Route]) -> dict[Route, str]:
        """Return what `after` returns, before the next wave of a claim; do not look up a binding that was just seen."""
        await self._check_sentinels()
        return self._missed_of(routes) | await self._closed(routes)

    async def after(self, routes: Collection[Route]) -> dict[Route, str]:
        """Return which of these routes of confirmed messages are not proven to have led to their queue, and why."""
        await self._check_sentinels()
        if not self.is_complete:
            return dict.fromkeys(routes, self._trouble)
        bound = self._routes.intersection(routes)
        return self._missed_of(routes) | (await self._ask_for_bindings(bound) if bound else {})

    async def _closed(self, routes: Collection[Route]) -> dict[Route, str]:
        if not self.is_complete:
            return dict.fromkeys(routes, self._trouble or "its queue has not been looked at")
        since = time.monotonic() - SEEN_SECONDS
        bound = self._routes.intersection(routes)
        doubtful = {route for route in bound if self._seen_at.get(route, -math.inf) < since}
        return await self._ask_for_bindings(doubtful) if doubtful else {}

    async def _watch(self, routes: Collection[Route]) -> None:
        while True:
            await asyncio.sleep(SEEN_SECONDS)
            with contextlib.suppress(BrokerLost):  # then there are no confirms either
                self._missed |= await self._ask_for_bindings(routes)

    def _missed_of(self, routes: Collection[Route]) -> dict[Route, str]:
        return {route: why for route, why in self._missed.items() if route in routes}

    async def _check_sentinels(self) -> None:
        for queue, sentinel in list(self._sentinels.items()):
            if not await self._exists(sentinel):
                del self._sentinels[queue]
                self._trouble = f"queue {queue!r} was deleted"

    async def _ask_for_bindings(self, routes: Collection[Route]) -> dict[Route, str]:
        vhost = self._publisher.connection.vhost
        if self._management is None or self._management.vhost != vhost:
            self._management = Management(self._management_urls, vhost, keep=True)
        bindings: list[Binding] = []
        asked_at = time.monotonic()
        try:
            for queue in self._queues:
                bindings += await self._management.bindings(queue)
        except ManagementUnavailable as error:
            found = dict.fromkeys(routes, str(error))
        else:
            found = {route: unbound(route, self._queues) for route in routes if not leads_to_one(route, bindings)}
        for route in routes:
            self._seen_at[route] = -math.inf if route in found else asked_at
        return found

    async def _find_or_make(self, conn: Connection, queue: str) -> str:
        with deadline(conn, STATEMENT_SECONDS):
            seen = await outbox_table.sentinel(conn, queue)
        if seen is not None and await self._exists(seen):
            return seen
        complaint = await complaint_about(self._publisher.connection, "queue", queue)
        if complaint:
            raise TopologyWrong(complaint)
        made = f"relay.witness.{_cut(queue)}.{uuid.uuid4().hex[:12]}"
        await self._make(queue, made)
        with deadline(conn, STATEMENT_SECONDS):
            if await outbox_table.replace_sentinel(conn, queue, seen, made):
                return made
        await self._publisher.ask(lambda channel: channel.exchange_delete(made))
        return await self._find_or_make(conn, queue)

    async def _make(self, queue: str, sentinel: str) -> None:
        async def declare(channel: AbstractChannel) -> None:
            await channel.exchange_declare(
                sentinel, exchange_type="fanout", durable=True, auto_delete=True, internal=True
            )
            await channel.queue_bind(queue, sentinel)

        try:
            await self._publisher.ask(declare)
        except Denied:
            # The queue was deleted just now, or may not be bound: an exchange that was never bound would stay for ever.
            with contextlib.suppress(Denied):
                await self._publisher.ask(lambda channel: channel.exchange_delete(sentinel))
            raise

    async def _exists(self, sentinel: str) -> bool:
        async def look(channel: AbstractChannel) -> Any:
            return await channel.exchange_declare(sentinel, passive=True)

        try:
            await self._publisher.ask(look)
        except Denied:
            return False
        return True


def _cut(queue: str) -> str:
    return queue.encode()[:NAME_BYTES].decode(errors="ignore")
