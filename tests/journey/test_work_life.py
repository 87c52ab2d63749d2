"""A worker's life: how much it holds, how several share, and what a cancel, a repeat or a stop does to it."""

import asyncio
import random
import signal
import time
from collections import Counter
from typing import LiteralString

import aiormq
import psycopg
import pytest
from psycopg import AsyncConnection

from dev.sandbox.keeper import send
from dev.sandbox.system import Counts
from orders.broker.topology import WORK_QUEUE
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey.placing import LONG, all_are, place, worker_statuses
from tests.journey.trace import Trace, rows

CANCELS = 1000 if LONG else 300
SHARED = 4000 if LONG else 1200
LONG_WORK = 2000 if LONG else 1300

# What the api's cancel comes down to: one change that wants the order placed, as the claim's does.
CANCEL: LiteralString = """
    UPDATE orders SET status = 'cancelled', version = version + 1, finished_at = clock_timestamp()
    WHERE order_id = %s AND status = 'placed'
"""

BODIES: LiteralString = "SELECT body FROM outbox WHERE routing_key = 'order.placed'"

FINISHED_BETWEEN: LiteralString = """
    SELECT extract(epoch FROM max(finished_at) - min(finished_at))::float8 FROM orders
"""


async def test_many_in_hand_at_once(start_system: StartSystem) -> None:
    """
    With work that waits 5 s, one worker holds 1,200 orders at once and finishes 200 a second.
    """
    waiting = {"WORK_MIN_SECONDS": "5", "WORK_MAX_SECONDS": "5"}
    system = start_system(apis=0, with_nginx=False, settings=waiting)
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        started = time.monotonic()
        await place(conn, [None] * LONG_WORK)

        async def is_full() -> bool:
            [status] = await worker_statuses(system)
            return status.in_hand >= 1200

        await eventually(is_full, 5)
        await eventually(lambda: all_are(conn, {"done": LONG_WORK}), 60)
        assert LONG_WORK / (time.monotonic() - started) > 130, "the first 5 s, in which none can be done, included"


async def test_workers_share(start_system: StartSystem) -> None:
    """
    Of four equal workers none handles over 40 % of the orders.
    """
    napping = {"WORK_MIN_SECONDS": "0.1", "WORK_MAX_SECONDS": "0.1"}
    system = start_system(apis=0, workers=4, with_nginx=False, settings=napping)
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        await place(conn, [None] * SHARED)
        await eventually(lambda: all_are(conn, {"done": SHARED}), 60)

    done = [status.done for status in await worker_statuses(system)]
    assert sum(done) == SHARED
    assert max(done) <= 0.4 * SHARED, done


async def test_cancel_races_the_claim(start_system: StartSystem, trace: Trace) -> None:
    """
    Either an order is cancelled and its handler never started, or it is worked and the cancel came too late.
    """
    racing = trace.settings | {"ORDERS_HANDLER": "tests.journey.handlers:start_and_nap"}
    system = start_system(apis=0, with_nginx=False, settings=racing)
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        cancelled, order_ids = set(), []
        for _ in range(CANCELS // 20):
            batch = await place(conn, [None] * 20)
            order_ids += batch
            for order_id in random.sample(batch, 20):
                await asyncio.sleep(random.uniform(0, 0.002))
                if (await conn.execute(CANCEL, [order_id])).rowcount:
                    cancelled.add(order_id)

        worked = len(order_ids) - len(cancelled)
        await eventually(lambda: all_are(conn, {"done": worked, "cancelled": len(cancelled)}), 30)
    assert cancelled, "no cancel was in time: this run says nothing"
    assert worked, "no claim was in time: this run says nothing"
    assert trace.count("started") == Counter(set(order_ids) - cancelled)


async def repeat_all(conn: AsyncConnection, amqp_url: str) -> None:
    """Publish every order's message a second time."""
    connection = await aiormq.connect(amqp_url)
    async with connection:
        channel = await connection.channel()
        for (body,) in await rows(conn, BODIES):
            assert isinstance(body, bytes)
            await channel.basic_publish(body, routing_key=WORK_QUEUE)


async def test_repeat_starts_no_second_handler(start_system: StartSystem, trace: Trace) -> None:
    """
    A second message of an order that is being worked, here or elsewhere, starts nothing, and is answered in the end.
    """
    system = start_system(apis=0, workers=2, with_nginx=False, settings=trace.settings)
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        trace.close_gate()
        order_ids = await place(conn, [None] * 20)
        await eventually(lambda: len(trace.count("started")) == 20)
        for _ in range(3):
            await repeat_all(conn, system.amqp_url)
        # Two looks of the worker that has been told that another holds the order.
        await asyncio.sleep(2.5)
        assert set(trace.count("started").values()) == {1}
        trace.open_gate()
        await eventually(lambda: all_are(conn, {"done": 20}))
        assert trace.count("effects") == dict.fromkeys(order_ids, 1)

        async def nothing_is_in_hand() -> bool:
            return [status.in_hand for status in await worker_statuses(system)] == [0, 0]

        await eventually(nothing_is_in_hand)


@pytest.mark.long
async def test_stopped_worker_is_replaced(start_system: StartSystem, trace: Trace) -> None:
    """
    When a worker is stopped with orders in hand, another works them within 10 s of their redelivery; when the first
    one goes on, it changes nothing any more.
    """
    system = start_system(apis=0, workers=1, with_nginx=False, settings=trace.settings)
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        trace.close_gate()
        await place(conn, [None] * 20)
        await eventually(lambda: len(trace.count("started")) == 20)
        system.scale(Counts(apis=0, relays=1, workers=2))
        await asyncio.to_thread(system.wait_ready)
        stopped = system.process("worker-1")
        assert stopped.pid is not None
        send(stopped.pid, signal.SIGSTOP)

        async def all_are_redelivered() -> bool:
            return sum(status.redelivered for status in await worker_statuses(system)) == 20

        await eventually(all_are_redelivered, 30)
        await eventually(lambda: trace.count("started").total() == 40, 10)
        trace.open_gate()
        await eventually(lambda: all_are(conn, {"done": 20}))
        send(stopped.pid, signal.SIGCONT)
        await eventually(lambda: trace.count("effects").total() == 40, 15)
        assert await rows(conn, "SELECT count(*) FROM outbox WHERE routing_key = 'order.done'") == [(20,)]
        assert await rows(conn, "SELECT DISTINCT version FROM orders") == [(3,)]


async def test_sigterm_hands_back(start_system: StartSystem, trace: Trace) -> None:
    """
    A worker that is told to end while its handlers hang hands their orders back in time, and nothing is counted.
    """
    system = start_system(apis=0, with_nginx=False, settings=trace.settings | {"WORKER_GRACE": "3"})
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        trace.close_gate()
        await place(conn, [None] * 20)
        await eventually(lambda: len(trace.count("started")) == 20)
        process = system.process("worker-1")
        process.restart = False
        told_at = time.monotonic()
        process.terminate()
        await eventually(lambda: process.pid is None, 10)
        assert time.monotonic() - told_at < 4
        states = "SELECT DISTINCT status, worker, failures FROM orders"
        assert await rows(conn, states) == [("processing", 0, 0)]

        trace.open_gate()
        process.restart = True
        process.start()
        await eventually(lambda: all_are(conn, {"done": 20}), 20)
        assert await rows(conn, "SELECT DISTINCT failures, attempts FROM orders") == [(0, 2)]
