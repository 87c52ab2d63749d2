"""What is done with a delivery, on real servers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiormq
import pytest
from psycopg import AsyncConnection

from orders.broker.consumer import Consumer
from orders.broker.topology import WORK_QUEUE
from orders.database.batcher import Batcher, Limits
from orders.database.claim_orders import Claim, claim_orders
from orders.database.dead_letters_table import store
from orders.database.finish_orders import finish_orders
from orders.database.postpone_orders import postpone_orders
from orders.model.work_message import WorkMessage
from orders.work.delivery import OrdersInHand, WorkBatches
from orders.work.runner import ChildDied, Job, Outcome, Run, Runner, Succeeded
from tests.eventually import eventually
from tests.orders.work_handlers import obey
from tests.orders.work_samples import WORKER, claim, place

VANISHED = WORKER + 1


async def die(_job: Job) -> Outcome:
    """Do as a child process of a deadly order."""
    return ChildDied("it died alone")


@asynccontextmanager
async def working(database_url: str, amqp_url: str, run: Run) -> AsyncIterator[OrdersInHand]:
    async def claim_for_us(conn: AsyncConnection, batch: Sequence[WorkMessage]) -> list[Claim]:
        return await claim_orders(conn, WORKER, batch)

    limits = Limits()
    async with (
        Batcher[WorkMessage, Claim]("claim", database_url, claim_for_us, limits) as claiming,
        Batcher("finish", database_url, finish_orders, limits) as finishing,
        Batcher("postpone", database_url, postpone_orders, limits) as postponing,
        Batcher("dead-letters", database_url, store, limits) as storing,
    ):
        work = OrdersInHand(WorkBatches(claiming, finishing, postponing, storing), run, die, max_failures=5)
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

    async def run(job: Job) -> Outcome:
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
