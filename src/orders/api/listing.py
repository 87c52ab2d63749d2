"""Lists of orders, newest first, a page at a time.

No index mentions the status, since one would end the HOT updates of every status change. So a list by status walks the
orders themselves, in steps that widen, and gives up its page half filled when its time is over: the cursor says where
to go on. That bounds what one request may cost, whatever it asks for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from orders.database.orders_table import ScanPage, ScanStep
from orders.model.order import Name, Order, Status, Text

NEWEST = UUID(int=(1 << 128) - 1)  # above every order
WIDEST_WINDOW = 8000  # orders in one step: some 10 ms
WALK_SECONDS = 0.5
PAGE_BYTES = 4 << 20  # of lines


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client may ask for; a parameter is there or not, and `null` is a text like any other."""

    status: Status | UnsetType = UNSET
    customer_id: Name | UnsetType = UNSET
    reference: Text | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=100)] = 50
    after: UUID | UnsetType = UNSET


class Page(msgspec.Struct, frozen=True):
    """A page of a list; `next` is the cursor for `after`, or null where the list has ended."""

    orders: list[Order]
    next: UUID | None


async def read_page(take: Callable[[ScanStep], Awaitable[ScanPage]], client: str, query: Query) -> Page:
    """Take steps until the page is full, the list has ended, or the time is over."""
    end = time.monotonic() + WALK_SECONDS
    # One more than wanted tells a full page that has a next one from the last of all.
    wanted = query.limit + 1
    needs_search = query.status is not UNSET or (not client and query.customer_id is query.reference is UNSET)
    window = min(4 * wanted, WIDEST_WINDOW) if needs_search else wanted
    after: UUID | None = query.after or NEWEST
    found: list[Order] = []
    found_bytes = 0
    while after is not None:
        step = ScanStep(
            client=client,
            status=query.status or None,
            customer_id=query.customer_id or None,
            reference=None if query.reference is UNSET else query.reference,
            after=after,
            wanted=wanted - len(found),
            window=max(window, wanted - len(found)),
            bytes=PAGE_BYTES - found_bytes,
        )
        scanned = await take(step)
        found += scanned.orders
        after = scanned.last
        found_bytes += sum(len(bytes(order.lines)) for order in scanned.orders)
        if scanned.is_full or found_bytes >= PAGE_BYTES or time.monotonic() > end:
            break
        window = min(4 * window, WIDEST_WINDOW)
        await asyncio.sleep(0)
    if len(found) > query.limit:
        found = found[: query.limit]
        after = found[-1].order_id
    return Page(found, after)
