"""Workers killed all the time, the broker restarted or paused, the database restarted: each order once."""

import asyncio
import random
import time
from typing import LiteralString

import psycopg
from psycopg import AsyncConnection

from dev.sandbox.servers import Servers
from examples.bookkeeper import create_table
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey.placing import LONG, all_are, place, statuses, worker_statuses
from tests.journey.trace import rows

ORDERS = 20_000 if LONG else 1500
SECONDS = 60 if LONG else 12

EVENTS: LiteralString = """
    SELECT count(*), count(DISTINCT key) FROM outbox WHERE routing_key = 'order.done'
"""
BOOKINGS: LiteralString = "SELECT count(*), count(DISTINCT order_id) FROM bookings"
LEFT: LiteralString = """
    SELECT (SELECT count(*) FROM retries), (SELECT count(*) FROM dead_letters),
           (SELECT count(*) FROM outbox WHERE settled_at IS NULL)
"""


async def asked(database_url: str, statement: LiteralString) -> list[tuple[object, ...]]:
    """Ask a database that may just be restarting."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True, connect_timeout=2) as conn:
        return await rows(conn, statement)


async def test_each_order_once_whatever_dies(start_own_system: StartSystem, own_servers: Servers) -> None:
    """
    Four workers, one of them killed every second, the broker restarted twice and the database once: each order has
    exactly one `done` event and exactly one booking, and nothing is left over.
    """
    settings = {"ORDERS_HANDLER": "examples.bookkeeper:book", "WORKER_CONCURRENCY": "200"}
    system = start_own_system(apis=0, workers=4, with_nginx=False, settings=settings)
    create_table(system.database_url)
    until = time.monotonic() + SECONDS
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keep_placing(system.database_url, until))
        tasks.create_task(restart_servers(own_servers))
        kills = 0
        while time.monotonic() < until:
            await asyncio.sleep(1)
            await asyncio.to_thread(system.process(f"worker-{random.randint(1, 4)}").kill)
            kills += 1
    assert kills > SECONDS / 2

    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:

        async def all_are_done() -> bool:
            assert await statuses(conn) == {"done": ORDERS}
            return True

        await eventually(all_are_done, 400 if LONG else 90)

        async def nothing_is_left() -> bool:
            assert await rows(conn, LEFT) == [(0, 0, 0)]
            return True

        await eventually(nothing_is_left, 30)
        assert await rows(conn, EVENTS) == [(ORDERS, ORDERS)]
        assert await rows(conn, BOOKINGS) == [(ORDERS, ORDERS)]
        [(again,)] = await rows(conn, "SELECT count(*) FROM orders WHERE attempts > 1")
        assert again, "no order was ever worked a second time: this run says nothing"


async def keep_placing(database_url: str, until: float) -> None:
    """Place the orders over most of the time, also while the database is away."""
    left, step = ORDERS, max(1, ORDERS // (SECONDS * 4))
    conn: AsyncConnection | None = None
    while left:
        try:
            conn = conn or await psycopg.AsyncConnection.connect(database_url, autocommit=True, connect_timeout=2)
            # One statement is one transaction; one whose answer is lost with the database may have been committed.
            before = left
            left = ORDERS - await placed_so_far(conn)
            assert left <= before
            await place(conn, [None] * min(step, left))
        except psycopg.OperationalError:
            if conn is not None:
                await conn.close()
            conn = None
        if time.monotonic() < until - 2:
            await asyncio.sleep(0.2)
    if conn is not None:
        await conn.close()


async def placed_so_far(conn: AsyncConnection) -> int:
    return sum((await statuses(conn)).values())


async def restart_servers(servers: Servers) -> None:
    """The broker twice, the database once, the first time without a word of farewell."""
    for server in (servers.rabbitmq, servers.postgres, servers.rabbitmq):
        await asyncio.sleep(SECONDS / 5)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)


async def test_broker_is_paused(start_own_system: StartSystem, own_servers: Servers) -> None:
    """
    A broker that keeps its connections and answers nothing is given up; when it goes on, the worker is back by itself,
    and nothing is counted against the orders.
    """
    napping = {"WORK_MIN_SECONDS": "0.1", "WORK_MAX_SECONDS": "0.2", "WORKER_CONCURRENCY": "20"}
    system = start_own_system(apis=0, with_nginx=False, settings=napping)
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        await place(conn, [None] * 100)
        await eventually(lambda: some_are_done(conn), 20)
        await asyncio.to_thread(own_servers.rabbitmq.pause)

        async def is_given_up() -> bool:
            [status] = await worker_statuses(system)
            return status.broker == "disconnected"

        await eventually(is_given_up, 20)
        await place(conn, [None] * 100)
        await asyncio.to_thread(own_servers.rabbitmq.resume)

        await eventually(lambda: all_are(conn, {"done": 200}), 40)
        assert await rows(conn, "SELECT max(failures) FROM orders") == [(0,)]


async def some_are_done(conn: AsyncConnection) -> bool:
    return (await statuses(conn)).get("done", 0) > 0
