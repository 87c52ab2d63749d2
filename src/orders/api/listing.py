"""Lists of orders, newest first, a page at a time.

No index covers the status, because such an index would end the HOT updates of every status change. A list by status
therefore scans the orders themselves, in steps that widen, and returns a partly filled page after SCAN_SECONDS: its
cursor says where to continue. This bounds the cost of one request, whatever it asks for.
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

NEWEST = UUID(int=(1 << 128) - 1)  # above every order id
WIDEST_WINDOW = 8000  # orders in one step, which takes about 10 ms
SCAN_SECONDS = 0.5
PAGE_BYTES = 4 << 20  # of the orders' lines, as JSON


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters of a list, each optional. `null` is a text like any other: a query string has no null."""

    status: Status | UnsetType = UNSET
    customer_id: Name | UnsetType = UNSET
    reference: Text | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=100)] = 50
    after: UUID | UnsetType = UNSET


class Page(msgspec.Struct, frozen=True):
    """A page of a list; `next` is the cursor for `after`, or null at the end of the list."""

    orders: list[Order]
    next: UUID | None


async def read_page(scan: Callable[[ScanStep], Awaitable[ScanPage]], client: str, query: Query) -> Page:
    """Return the page that `query` asks for, of the orders of `client`; `scan` takes one step down the list.

    Scans until the page has `query.limit` orders or PAGE_BYTES, the list ends, or SCAN_SECONDS are over.
    Raises what `scan` raises.
    """
    end = time.monotonic() + SCAN_SECONDS
    # One more than the limit shows whether a full page is the last one.
    max_rows = query.limit + 1
    needs_search = query.status is not UNSET or (not client and query.customer_id is query.reference is UNSET)
    window = min(4 * max_rows, WIDEST_WINDOW) if needs_search else max_rows
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
            wanted=max_rows - len(found),
            window=max(window, max_rows - len(found)),
            bytes=PAGE_BYTES - found_bytes,
        )
        scanned = await scan(step)
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
