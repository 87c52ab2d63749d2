"""Place many orders at once, past the api: what is tested here begins behind the commit."""

import os
from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

import httpx
import msgspec
from psycopg import AsyncConnection

from dev.sandbox.system import System
from orders.database.place_orders import place_orders, placement_of
from orders.model.traceparent import continue_trace
from tests.orders.samples import new_order

# The lengths of the acceptance are long for every day: `JOURNEYS=long make test ARGS=tests/journey/test_work_*.py`.
LONG = os.environ.get("JOURNEYS") == "long"

BATCH = 250

# References that tests/journey/work_handlers.py obeys.
DEADLY, REFUSED = "deadly", "refused"

STATUSES: LiteralString = "SELECT status, count(*)::int FROM orders GROUP BY status"


async def place(conn: AsyncConnection, references: Sequence[str | None]) -> list[UUID]:
    """Place an order with each of these references."""
    placed = [
        placement_of(new_order(reference=reference), client="", traceparent=continue_trace(None))
        for reference in references
    ]
    for start in range(0, len(placed), BATCH):
        await place_orders(conn, placed[start : start + BATCH])
    return [each.order.order_id for each in placed]


async def statuses(conn: AsyncConnection) -> dict[str, int]:
    """How many orders there are of each status."""
    return dict(await (await conn.execute(STATUSES)).fetchall())


async def all_are(conn: AsyncConnection, expected: dict[str, int]) -> bool:
    """Whether the orders have come to this; to be asked eventually."""
    assert await statuses(conn) == expected
    return True


class WorkerStatus(msgspec.Struct):
    """What a worker tells of itself."""

    in_hand: int
    done: int
    failed: int
    redelivered: int
    waiting_for_retry: int
    broker: str


async def worker_statuses(system: System) -> list[WorkerStatus]:
    """What each worker tells of itself; one that is down tells nothing."""
    told = []
    async with httpx.AsyncClient(timeout=2) as client:
        for url in system.worker_urls:
            try:
                told.append(msgspec.json.decode((await client.get(f"{url}/status")).content, type=WorkerStatus))
            except httpx.HTTPError:
                continue
    return told
