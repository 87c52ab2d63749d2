"""A thousand live streams on one api: `make bench ONLY=streams`.

What they cost while nothing changes, how long a change takes from its commit to each stream and to a request with
`Prefer: wait`, and how long they live after SIGTERM.
"""

import asyncio
import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from uuid import UUID

import psycopg

from dev.bench import cpu
from dev.bench.measurement import Bench
from dev.bench.record import Figures
from dev.sandbox.system import Counts, System
from orders.api.live import TICK_SECONDS
from orders.database import postgres
from orders.database.claim_orders import claim_orders
from tests import places
from tests.eventually import eventually
from tests.journey import shoppers
from tests.journey.raw_http import Connection
from tests.orders.work_samples import work_message_again

STREAMS = 1000
AT_ONCE = 50  # orders that one transaction changes
IDLE_SECONDS = 5


class Watcher:
    """A stream of one order's events: when which version was seen, and when it ended."""

    def __init__(self, base_url: str, order_id: UUID) -> None:
        self.order_id = order_id
        self.seen: dict[int, float] = {}
        self.ended = 0.0
        self._connection = Connection(base_url)

    async def watch(self) -> None:
        """Watch until the stream is cut."""
        await self._connection.send("GET", f"/orders/{self.order_id}/events")
        status, _ = await self._connection.head()
        assert status == 200
        async for number, _ in self._connection.events():
            self.seen[int(number)] = time.perf_counter()
        self.ended = time.perf_counter()
        self._connection.hang_up()


def measure(bench: Bench) -> None:
    """Measure, and compare with the promises."""
    bench.settings(streams=STREAMS, apis=1, tick_seconds=TICK_SECONDS)
    with tempfile.TemporaryDirectory(prefix="streams-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        with (
            places.database(bench.servers) as url,
            places.vhost(bench.servers) as vhost,
            System(
                url, vhost, folder, Counts(apis=1, relays=0, workers=0), users_url=bench.servers.management_url
            ) as system,
        ):
            bench.compare("a thousand streams", {"ours": lambda: asyncio.run(once(system))}, 3 if bench.full else 1)
    figures = {name: bench.median("a thousand streams", "ours", name) for name in ("stream_max_ms", "sigterm_seconds")}
    bench.note(
        f"a change is seen by every stream within {figures['stream_max_ms']:.0f} ms (promise: 300 ms); "
        f"after SIGTERM the last stream ends within {figures['sigterm_seconds']:.2f} s (target: 1 s)"
    )


async def once(system: System) -> Figures:
    """Open the streams, leave them alone, change their orders, and end the api."""
    order_ids = await shoppers.place(system.base_url, STREAMS)
    watchers = {order_id: Watcher(system.base_url, order_id) for order_id in order_ids}
    async with asyncio.TaskGroup() as tasks:
        for watcher in watchers.values():
            tasks.create_task(watcher.watch(), name="watcher")
        await eventually(lambda: all(watcher.seen for watcher in watchers.values()), 60)
        conn = await postgres.connect(system.database_url, "bench")
        try:
            idle = await leave_alone(conn)
            delays, waits = await change_all(system.base_url, conn, watchers)
        finally:
            await postgres.close(conn)
        asked = time.perf_counter()
        system.process("api-1").terminate()
    last = max(watcher.ended for watcher in watchers.values())
    await asyncio.to_thread(system.wait_ready)
    return {
        **idle,
        "stream_p50_ms": statistics.median(delays) * 1e3,
        "stream_p99_ms": statistics.quantiles(delays, n=100)[98] * 1e3,
        "stream_max_ms": max(delays) * 1e3,
        "wait_p50_ms": statistics.median(waits) * 1e3,
        "wait_max_ms": max(waits) * 1e3,
        "sigterm_seconds": last - asked,
    }


async def leave_alone(conn: psycopg.AsyncConnection) -> dict[str, float]:
    """Return what the streams cost while nothing happens."""
    await asyncio.sleep(1.5)  # a backend reports its transactions about once a second
    before, clock, since = await transactions(conn), cpu.Clock(), time.perf_counter()
    await asyncio.sleep(IDLE_SECONDS)
    made, spent, seconds = await transactions(conn) - before, clock.spent(), time.perf_counter() - since
    return {
        "idle_api_cores": spent["orders.app"] / seconds,
        "idle_postgres_cores": spent.get("postgres", 0.0) / seconds,
        "statements_per_tick": (made - 1) / (seconds / TICK_SECONDS),  # without our own
    }


async def change_all(
    base_url: str, conn: psycopg.AsyncConnection, watchers: dict[UUID, Watcher]
) -> tuple[list[float], list[float]]:
    """Start work on the orders, some at a time; return the seconds from each commit to its streams and its wait."""
    delays: list[float] = []
    waits: list[float] = []
    order_ids = list(watchers)
    for start in range(0, len(order_ids), AT_ONCE):
        some = order_ids[start : start + AT_ONCE]
        connection = Connection(base_url)
        wait = asyncio.create_task(connection.ask("GET", f"/orders/{some[0]}", Prefer="wait=10"), name="wait")
        await asyncio.sleep(random.uniform(0.2, 0.4))  # so that commits fall anywhere between two ticks
        async with conn.transaction():
            await claim_orders(conn, 1, [await work_message_again(conn, order_id) for order_id in some])
        committed = time.perf_counter()
        status, _, _ = await wait
        assert status == 200
        waits.append(time.perf_counter() - committed)
        connection.hang_up()
        await eventually(partial(are_seen, [watchers[order_id] for order_id in some]))
        delays += [watchers[order_id].seen[2] - committed for order_id in some]
    return delays, waits


def are_seen(watchers: list[Watcher]) -> bool:
    return all(2 in watcher.seen for watcher in watchers)


async def transactions(conn: psycopg.AsyncConnection) -> int:
    cursor = await conn.execute("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])
