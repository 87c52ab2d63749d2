"""What is done with a delivery, on real servers."""

import asyncio
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
