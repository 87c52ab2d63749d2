"""The database is away, or does not answer: placements say so in time, and go on when it is back."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import httpx
import psycopg
import pytest

from dev.sandbox.servers import Servers
from orders.model.errors import Unavailable
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey import shoppers

# So often each shopper is refused before the database comes back: some 20 s of an outage.
REFUSALS = int(os.environ.get("OUTAGE_REFUSALS", "13"))
SHOPPERS = 8


class Placements:
    """Placements without keys, one after another: when each began, how long it took, what it was answered.

    A refusal is the api's own, which had its chain of deadlines for it; nginx would speak in other words.
    """

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.made: list[tuple[float, float, int]] = []
        self.accepted: list[UUID] = []

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        stop = asyncio.Event()

        async def shop() -> None:
            async with shoppers.client(self.base_url) as http:
                while not stop.is_set():
                    began = time.monotonic()
                    answer = await http.post("/orders", json=shoppers.ORDER)
                    self.made.append((began, time.monotonic() - began, answer.status_code))
                    if answer.status_code == httpx.codes.CREATED:
                        self.accepted.append(UUID(answer.json()["order_id"]))
                    else:
                        assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE, answer.text
                        assert answer.headers["retry-after"] == "1"
                        assert answer.json()["detail"] == str(Unavailable()), answer.text
                    await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(SHOPPERS):
                tasks.create_task(shop())
            try:
                yield
            finally:
                stop.set()


@pytest.mark.parametrize("fault", ["stopped", "paused"])
async def test_placements_while_the_database_is_away(
    fault: str, own_servers: Servers, start_own_system: StartSystem
) -> None:
    """
    503 while it is gone, by the api itself, 201 soon after its return, and what was answered with yes is there.
    """
    system = start_own_system(relays=0, workers=0)
    postgres = own_servers.postgres
    load = Placements(system.base_url)
    # How long both take is printed; that the deadlines add up to 2 s is held by tests/orders/runtime/test_timeouts.py.
    async with load.going_on():
        await eventually(lambda: len(load.accepted) > 50)
        await asyncio.to_thread(postgres.stop if fault == "stopped" else postgres.pause)
        gone = time.monotonic()
        refused = len(load.made) - len(load.accepted)
        await eventually(lambda: len(load.made) - len(load.accepted) >= refused + SHOPPERS * REFUSALS, 30 * REFUSALS)
        returning = time.monotonic()
        await asyncio.to_thread(postgres.start if fault == "stopped" else postgres.resume)
        back = time.monotonic()
        await eventually(lambda: any(began > back and status == 201 for began, _, status in load.made), 15)
        accepted = len(load.accepted)
        await eventually(lambda: len(load.accepted) >= accepted + 10 * SHOPPERS)

    meanwhile = [(took, status) for began, took, status in load.made if gone <= began < returning - 2]
    assert {status for _, status in meanwhile} == {503}
    slowest = max(took for took, _ in meanwhile)
    first = min(began + took for began, took, status in load.made if began > returning and status == 201)
    print(f"{fault}: 503 after {slowest:.2f} s at most, 201 {first - back:.2f} s after its return")

    async with await psycopg.AsyncConnection.connect(system.database_url) as conn:
        cursor = await conn.execute("SELECT order_id FROM orders WHERE order_id = ANY(%s)", [load.accepted])
        assert len(await cursor.fetchall()) == len(load.accepted)
        cursor = await conn.execute(
            "SELECT count(*) FROM orders o FULL JOIN outbox e ON e.key = o.order_id::text "
            "WHERE o.order_id IS NULL OR e.id IS NULL"
        )
        assert await cursor.fetchone() == (0,)
        cursor = await conn.execute("SELECT count(*) FROM orders")
        row = await cursor.fetchone()
    assert row is not None
    assert row[0] <= len(load.made), "at most one for each request"
