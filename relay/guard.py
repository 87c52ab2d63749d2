"""Required rows reach their queues: this is seen to after the broker's confirms, and before anything is recorded.

A confirm says that a queue has the message, not which. So each required queue is given a witness: an exchange of a name
that is never used twice, bound to that queue alone, to which nobody can publish, and which RabbitMQ deletes together
with the last queue that is bound to it. If it is there after a confirm, its queue was there all the time since before
the publish; a passive declare of the queue would not show that it was deleted and declared anew meanwhile. It is a
look-up for the broker, and nothing for the queue. Relays share it, by `outbox_witness`, so that none is left behind.

Bindings AMQP does not show at all. The management interface does, and is asked at the same moment.

Within a claim it is seen to before each wave but the first, too: what comes second of a key may not reach a queue that
is back before the first does, which it missed.
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

NAME_BYTES = 200  # of a queue's name in its witness's, which may have 255
# For so long a binding that was seen needs no look before a publish. The look after it would not show that the binding
# was put back in between, so without the first one all that time's messages might have missed their queue.
SEEN_SECONDS = 0.25


class Guard:
    """Knows which routes required rows may take, and proves afterwards that they led to their queue."""

    def __init__(self, settings: Settings, publisher: Publisher) -> None:
        self._publisher = publisher
        self._queues = settings.queue_names
        self._routes = frozenset(settings.routes)
        self._management_url = settings.management_url
        self._witnesses: dict[str, str] = {}  # queue: exchange
        self._trouble = ""
        self._missed: dict[Route, str] = {}  # what was seen to be away while messages of this claim were out
        self._seen_at: dict[Route, float] = {}  # when routes were last seen to be bound, in monotonic seconds

    @property
    def is_complete(self) -> bool:
        """Say whether each queue has its witness."""
        return len(self._witnesses) == len(self._queues)

    def forget(self) -> None:
        """Look for the witnesses anew: nobody has looked at the queues for a while."""
        self._witnesses.clear()

    async def complete(self, conn: Connection) -> str:
        """Find or make the witnesses that are missing, outside of a transaction; say what is in the way, or nothing."""
        self._trouble = ""
        for queue in self._queues:
            if queue not in self._witnesses:
                try:
                    self._witnesses[queue] = await self._find_or_make(conn, queue)
                except Denied as error:
                    self._trouble = f"queue {queue!r} cannot be given a witness: {error}"
                    break
                except TopologyWrong as error:
                    self._trouble = str(error)
                    break
        return self._trouble

    async def before(self, routes: Collection[Route]) -> dict[Route, str]:
        """Return the routes that required rows of a claim cannot take, and why; asks what has not just been seen."""
        self._missed.clear()
        return await self._closed(routes)

    @contextlib.asynccontextmanager
    async def watching(self, routes: Collection[Route]) -> AsyncIterator[None]:
        """Look at the bindings while messages are out that take long: one may be away, and back before the confirms."""
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
        """Return what `after` does, before the next wave of a claim; a binding that was just seen is not asked for."""
        await self._look_for_witnesses()
        return self._missed_of(routes) | await self._closed(routes)

    async def after(self, routes: Collection[Route]) -> dict[Route, str]:
        """Return the routes of confirmed messages that are not proven to have led to their queue, and why."""
        await self._look_for_witnesses()
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

    async def _look_for_witnesses(self) -> None:
        for queue, witness in list(self._witnesses.items()):
            if not await self._is_there(witness):
                del self._witnesses[queue]
                self._trouble = f"queue {queue!r} was deleted"

    async def _ask_for_bindings(self, routes: Collection[Route]) -> dict[Route, str]:
        management = Management(self._management_url, self._publisher.connection.vhost)
        bindings: list[Binding] = []
        asked_at = time.monotonic()
        try:
            for queue in self._queues:
                bindings += await management.bindings(queue)
        except ManagementUnavailable as error:
            found = dict.fromkeys(routes, str(error))
        else:
            found = {route: unbound(route, self._queues) for route in routes if not leads_to_one(route, bindings)}
        for route in routes:
            self._seen_at[route] = -math.inf if route in found else asked_at
        return found

    async def _find_or_make(self, conn: Connection, queue: str) -> str:
        with deadline(conn, STATEMENT_SECONDS):
            seen = await outbox_table.witness(conn, queue)
        if seen is not None and await self._is_there(seen):
            return seen
        complaint = await complaint_about(self._publisher.connection, "queue", queue)
        if complaint:
            raise TopologyWrong(complaint)
        made = f"relay.witness.{_cut(queue)}.{uuid.uuid4().hex[:12]}"
        await self._make(queue, made)
        with deadline(conn, STATEMENT_SECONDS):
            if await outbox_table.replace_witness(conn, queue, seen, made):
                return made
        await self._publisher.ask(lambda channel: channel.exchange_delete(made))
        return await self._find_or_make(conn, queue)

    async def _make(self, queue: str, witness: str) -> None:
        async def declare(channel: AbstractChannel) -> None:
            await channel.exchange_declare(
                witness, exchange_type="fanout", durable=True, auto_delete=True, internal=True
            )
            await channel.queue_bind(queue, witness)

        try:
            await self._publisher.ask(declare)
        except Denied:
            # Deleted just now, or not ours to bind: an exchange that was never bound would stay for ever.
            with contextlib.suppress(Denied):
                await self._publisher.ask(lambda channel: channel.exchange_delete(witness))
            raise

    async def _is_there(self, witness: str) -> bool:
        async def look(channel: AbstractChannel) -> Any:
            return await channel.exchange_declare(witness, passive=True)

        try:
            await self._publisher.ask(look)
        except Denied:
            return False
        return True


def _cut(queue: str) -> str:
    return queue.encode()[:NAME_BYTES].decode(errors="ignore")
