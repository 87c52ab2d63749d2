"""What is done with a delivery, on real servers."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiormq
import pytest
from psycopg import AsyncConnection

from orders.broker.consumer import Consumer
from orders.broker.topology import WORK_QUEUE
from orders.database.notify import RelayNotifier
from orders.database.worker_lock import WorkerLock
from orders.work.batches import WorkBatches
from orders.work.delivery import OrdersInHand
from orders.work.runner import ChildDied, Job, Run, Runner, RunOutcome, Succeeded
from tests.eventually import eventually
from tests.orders.work_handlers import obey
from tests.orders.work_samples import WORKER, claim, place

VANISHED = WORKER + 1


async def die(_job: Job) -> RunOutcome:
    """Do as a child process of a deadly order."""
    return ChildDied("it died alone")


@asynccontextmanager
async def working(database_url: str, amqp_url: str, run: Run) -> AsyncIterator[OrdersInHand]:
    async with (
        RelayNotifier(database_url) as notifier,
        WorkerLock(database_url) as worker_lock,
        WorkBatches(database_url, worker_lock, notifier) as batches,
    ):
        work = OrdersInHand(batches, run, die, max_failures=5)
        consumer = Consumer(amqp_url, WORK_QUEUE, 10, work.take)
        consuming = asyncio.create_task(consumer.run())
        try:
            yield work
        finally:
            consumer.stop()
            await work.drain(0, lambda: None)
            consumer.finish()
            await consuming


async def publish(amqp_url: str, body: bytes) -> None:
    async with await aiormq.connect(amqp_url) as connection:
        channel = await connection.channel()
        await channel.basic_publish(body, routing_key=WORK_QUEUE)


async def test_condemned_order_comes_again(conn: AsyncConnection, database_url: str, topology: str) -> None:
    """
    When the reject of a deadly order got lost, its next delivery is rejected too: it never runs among the others.
    """
    ran: list[Job] = []

    async def run(job: Job) -> RunOutcome:
        ran.append(job)
        return Succeeded()

    [placed] = await place(conn)
    await claim(conn, [placed], VANISHED)
    async with working(database_url, topology, run) as work:
        for times in (1, 2):
            await publish(topology, placed.event.body)

            def is_rejected(times: int = times) -> bool:
                return work.counters.dead_lettered == times

            await eventually(is_rejected)
    assert ran == []


async def test_handler_that_cancels_its_own_task(conn: AsyncConnection, database_url: str, topology: str) -> None:
    """
    What nobody can tell from our own cancellation ends the worker: it is not to keep an order in hand for ever.
    """
    [placed] = await place(conn, reference="cancel itself")
    async with working(database_url, topology, Runner(obey, database_url, timeout=5)) as work:
        await publish(topology, placed.event.body)
        await eventually(work.crashed.is_set)
    with pytest.raises(RuntimeError, match="cancelled by its own handler"):
        work.raise_crash()


async def test_each_end_but_done_has_its_line(
    conn: AsyncConnection, database_url: str, topology: str, caplog: pytest.LogCaptureFixture
) -> None:
    """
    The log names an order that failed with its reason, and an order that waits with the time until which it waits.
    """
    caplog.set_level(logging.INFO, "orders.work.delivery")
    [refused] = await place(conn, reference="refuse")
    [waiting] = await place(conn, reference="retry")
    [done] = await place(conn)
    async with working(database_url, topology, Runner(obey, database_url, timeout=5)) as work:
        for placed in (refused, waiting, done):
            await publish(topology, placed.event.body)
        await eventually(lambda: (work.counters.failed, work.counters.postponed, work.counters.done) == (1, 1, 1))

    assert f"order {refused.order.order_id} failed, refused: no stock" in caplog.messages
    [line] = [line for line in caplog.messages if str(waiting.order.order_id) in line]
    assert re.fullmatch(r"order \S+ waits 7.0 s, until 2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\dZ: busy", line)
    assert str(done.order.order_id) not in caplog.text
