"""The worker as a process."""

import asyncio
import os
import sys

import aiormq
import httpx
from psycopg import AsyncConnection

from dev.sandbox.ports import free_port
from dev.sandbox.wire import Wire
from orders.broker.topology import WORK_QUEUE
from tests.eventually import eventually
from tests.orders.work_samples import place


async def test_sigterm_while_the_database_is_away(
    conn: AsyncConnection, database_url: str, topology: str, wire: Wire
) -> None:
    """
    A worker with an order that it cannot claim, because the database is away, ends by itself when it is told to.
    """
    [placed] = await place(conn)
    port = free_port()
    settings = {
        "DATABASE_URL": wire.url(database_url), "AMQP_URL": topology, "WORKER_PORT": str(port),
        "ORDERS_HANDLER": "orders.handlers:do_nothing",
    }  # fmt: skip
    worker = await asyncio.create_subprocess_exec(sys.executable, "-m", "orders.worker", env=os.environ | settings)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

            async def tells(**expected: object) -> bool:
                try:
                    status = (await client.get("/status")).json()
                except httpx.HTTPError:
                    return False
                return {name: status[name] for name in expected} == expected

            await eventually(lambda: tells(database="connected", broker="connected"), 30)
            wire.cut()
            await eventually(lambda: tells(database="disconnected"))
            async with await aiormq.connect(topology) as connection:
                channel = await connection.channel()
                await channel.basic_publish(placed.event.body, routing_key=WORK_QUEUE)
            await eventually(lambda: tells(in_hand=1))

        worker.terminate()

        assert await asyncio.wait_for(worker.wait(), 15) == 0
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
