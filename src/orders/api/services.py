"""The parts of an api process that its handlers share, and the calls that they make to the database."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import msgspec
from litestar import Request

from orders.api.auth import Authenticator, Caller
from orders.api.back_pressure import BackPressure
from orders.api.live import Live
from orders.api.shares import Shares
from orders.database.api_keys_table import ClientKey, KeyId, Scope
from orders.database.batcher import Batcher
from orders.database.cancel_orders import Cancellation, Cancelled
from orders.database.orders_table import OrderLookup, ScanPage, ScanStep
from orders.database.place_orders import Placed, Placement
from orders.database.reads import Found, Read
from orders.model.errors import OrdersError, Unavailable
from orders.model.order import Order

# The size of a read in a batch of reads, in bytes. The size of an order is unknown before the read: few are larger,
# and a batch of the largest orders stays bounded.
READ_SIZE = 1 << 16

BATCH_TURNS = 2  # one is prepared or answered while the orders of the other are written


class Services(msgspec.Struct, frozen=True):
    """The services of a process; `app.state["services"]` holds them while its lifespan runs.

    Every call to the database raises Overloaded when its queue is full, and Unavailable at the end of its patience.
    `until` is that end in the loop's time; None: ORDERS_PATIENCE from now.
    """

    write: Batcher[Placement, Placed]
    write_cancel: Batcher[Cancellation, Cancelled]
    read: Batcher[Read, Found]
    read_lists: Batcher[ScanStep, ScanPage]
    live: Live
    authenticator: Authenticator
    back_pressure: BackPressure
    placements: Shares
    lists: Shares
    batch_turns: asyncio.Semaphore = msgspec.field(default_factory=lambda: asyncio.Semaphore(BATCH_TURNS))

    async def place(self, placement: Placement, until: float | None) -> Placed:
        """Return once the order is committed; raise KeyReused, Refused or TooManyRequests."""
        self.placements.take(placement.client)
        try:
            return await self.write(placement, placement.size, until)
        finally:
            self.placements.give_back(placement.client)

    async def place_many(self, placements: Sequence[Placement], until: float | None) -> list[Placed | OrdersError]:
        """Return once the orders of some lines of a batch are committed, or why one is not, in their order.

        BATCH_TURNS of these calls have their orders in the queue of the writers at a time, and the others wait: a
        single placement waits behind few lines, however many batches there are. Raises Unavailable if the patience
        ends first.
        """
        until = until or self.write.patience_ends()
        try:
            async with asyncio.timeout_at(until):
                await self.batch_turns.acquire()
        except TimeoutError:
            raise Unavailable from None
        try:
            return await self.write.many(placements, [each.size for each in placements], until)
        finally:
            self.batch_turns.release()

    async def cancel(self, cancellation: Cancellation, until: float | None) -> Cancelled:
        """Return once the cancellation is committed; raise OrderNotFound, TooLate, KeyReused or Refused.

        Raises Unavailable if another session has the order's row locked until the patience ends.
        """
        return await self.write_cancel(cancellation, cancellation.size, until)

    async def find(self, lookup: OrderLookup, until: float | None) -> Order:
        """Return the current state of an order; raise OrderNotFound if the client has no such order."""
        return cast(Order, await self.read(lookup, READ_SIZE, until))

    async def find_key(self, key_id: KeyId, until: float | None) -> ClientKey | None:
        """Return a valid API key, or None if there is none with this id."""
        return cast(ClientKey | None, await self.read(key_id, until=until))

    async def scan(self, step: ScanStep, until: float | None) -> ScanPage:
        """Return the orders that one step of a list finds."""
        return await self.read_lists(step, READ_SIZE, until)

    async def authenticate(self, authorization: str | None, scope: Scope) -> Caller:
        """Return the caller with this Authorization header.

        Raises Unauthorized if its key is not valid, and Forbidden if it lacks `scope`.

        A look-up of the key begins the one patience that the request has.
        """
        until: float | None = None

        async def find(key_id: KeyId) -> ClientKey | None:
            nonlocal until
            until = self.read.patience_ends()
            return await self.find_key(key_id, until)

        caller = await self.authenticator.authenticate(authorization, scope, find)
        return caller if until is None else msgspec.structs.replace(caller, until=until)


def services_of(request: Request[Any, Any, Any]) -> Services:
    """Return the services of this process."""
    return request.app.state["services"]  # type: ignore[no-any-return]
