"""A thousand streams."""

import asyncio
import time
from uuid import UUID

import httpx
import psycopg
import pytest

from dev.sandbox.system import System
from orders.api.live import TICK_SECONDS
from orders.database.claim_orders import Claimed, claim_orders
from orders.database.finish_orders import finish_of, finish_orders
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey import shoppers
from tests.journey.raw_http import Connection
from tests.orders.work_samples import work_message_again

STREAMS = 1000
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class Watcher:
    """A client with one stream, who takes it up again when it is cut."""

    def __init__(self, system: System, order_id: UUID) -> None:
        self.system = system
        self.order_id = order_id
        self.seen: list[tuple[str, str]] = []
        self.streams = 0

    async def watch(self) -> float:
        """Watch the order to its end; return when that was."""
        while True:
            connection = Connection(self.system.base_url)
            last = self.seen[-1][0] if self.seen else ""  # no number: as if it were not there
            await connection.send("GET", f"/orders/{self.order_id}/events", Last_Event_ID=last)
            status, _ = await connection.head()
            self.streams += status == 200
            if status == 200:
                async for number, data in connection.events():
                    self.seen.append((number, data["status"]))
            connection.hang_up()
            if self.seen and self.seen[-1][1] == "done":
                return time.monotonic()
            await asyncio.sleep(0.1)


async def finish_all(conn: psycopg.AsyncConnection, order_ids: list[UUID]) -> None:
    """What a worker does, for all of them at once."""
    async with conn.transaction():
        claimed = await claim_orders(conn, 1, [await work_message_again(conn, order_id) for order_id in order_ids])
    async with conn.transaction():
        await finish_orders(conn, [finish_of(each, TRACE) for each in claimed if isinstance(each, Claimed)])


async def transactions(conn: psycopg.AsyncConnection) -> int:
    """How many the database has counted so far: each backend reports its own about once a second."""
    cursor = await conn.execute("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def ticks(system: System) -> int:
    """How often the apis have asked for the newest status of all that is watched."""
    lines = await metrics(system)
    return sum(int(float(line.split()[1])) for line in lines if line.startswith("orders_watch_ticks_total "))


async def metrics(system: System) -> list[str]:
    async with httpx.AsyncClient(trust_env=False) as client:
        answers = [await client.get(f"{url}/metrics") for url in system.api_urls]
    return [line for answer in answers for line in answer.text.splitlines()]


@pytest.mark.long
async def test_a_thousand_streams(start_system: StartSystem) -> None:
    """
    A thousand streams through nginx on one api cost one statement a tick; each sees its order's end, and closes.
    """
    system = start_system(apis=1, relays=0, workers=0)
    order_ids = await shoppers.place(system.base_url, STREAMS)
    watchers = [Watcher(system, order_id) for order_id in order_ids]
    watching = asyncio.gather(*(watcher.watch() for watcher in watchers))
    await eventually(lambda: all(watcher.seen for watcher in watchers), 60)

    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        first_tick, first_transaction = await ticks(system), await transactions(conn)

        async def looked_often() -> bool:
            return await ticks(system) >= first_tick + 40

        await eventually(looked_often, 60)
        made, looked = await transactions(conn) - first_transaction, await ticks(system) - first_tick
        await finish_all(conn, order_ids)
        finished, last_tick = time.monotonic(), await ticks(system)

    ends = await asyncio.wait_for(watching, 30)
    # One for each tick, those of a second that were reported late, and some of our own and of the server's.
    assert made <= looked + 1 / TICK_SECONDS + 20
    assert {watcher.streams for watcher in watchers} == {1}
    assert all(watcher.seen[-1] == ("3", "done") for watcher in watchers)
    # The tick that was under way when the last of them was committed may have looked too early.
    assert await ticks(system) <= last_tick + 2
    print(f"{made} transactions in {looked} ticks; the last stream heard of the end {max(ends) - finished:.3f} s later")


async def test_sigterm_ends_streams(start_system: StartSystem) -> None:
    """
    SIGTERM ends an api's streams at once, and its clients go on elsewhere where they were.
    """
    system = start_system(apis=2, relays=0, workers=0)
    order_ids = await shoppers.place(system.base_url, 100)
    watchers = [Watcher(system, order_id) for order_id in order_ids]
    watching = asyncio.gather(*(watcher.watch() for watcher in watchers))
    await eventually(lambda: all(watcher.seen for watcher in watchers), 30)
    lines = await metrics(system)
    on_each = [float(line.split()[1]) for line in lines if line.startswith("orders_watchers ")]

    stopping = system.process("api-1")
    await asyncio.to_thread(stopping.stop)

    assert min(on_each) > 0, "both apis had streams"
    # What is left when the grace is over is cancelled, and the log says so.
    assert "has stopped" in stopping.last_line()
    assert "graceful shutdown exceeded" not in stopping.log.read_text()
    await eventually(lambda: sum(watcher.streams for watcher in watchers) >= 100 + on_each[0], 10)
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        await finish_all(conn, order_ids)
    await asyncio.wait_for(watching, 30)
    for watcher in watchers:
        numbers = [int(number) for number, _ in watcher.seen]
        assert numbers == sorted(set(numbers)), "nothing was told twice"
