"""The sweep beside a worker, on real servers: what it sends again, and what it leaves alone."""

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
from orders.work.runner import Job, Run, RunOutcome, Succeeded
from orders.work.sweep import Pace, Sweep
from tests.eventually import eventually
from tests.orders.database.test_stragglers_table import send_all
from tests.orders.work_samples import place, rows

AT_ONCE = Pace(every_seconds=0.02, age_seconds=0, wait_seconds=0.5)
AGAIN = "SELECT key FROM outbox WHERE exchange = ''"


class Rounds(Consumer):
    """A consumer that counts how often the sweep has asked what waits in the queue."""

    asked = 0

    async def count_ready(self) -> int | None:
        self.asked += 1
        return await super().count_ready()

    async def more(self, rounds: int = 5) -> None:
        until = self.asked + rounds
        await eventually(lambda: self.asked >= until)


@asynccontextmanager
async def sweeping(database_url: str, amqp_url: str, run: Run, prefetch: int = 10) -> AsyncIterator[Rounds]:
    """Run a worker with its sweep, whose rounds follow each other at once."""
    async with (
        RelayNotifier(database_url) as notifier,
        WorkerLock(database_url) as worker_lock,
        WorkBatches(database_url, worker_lock, notifier) as batches,
    ):
        work = OrdersInHand(batches, run, run, max_failures=5)
        consumer = Rounds(amqp_url, WORK_QUEUE, prefetch, work.take)
        consuming = asyncio.create_task(consumer.run())
        try:
            async with Sweep(
                database_url, worker_lock, work, consumer, lambda _rows: None, steady=AT_ONCE, hasty=AT_ONCE
            ):
                yield consumer
        finally:
            consumer.stop()
            await work.drain(0, lambda: None)
            consumer.finish()
            await consuming


@asynccontextmanager
async def queue(amqp_url: str) -> AsyncIterator[aiormq.abc.AbstractChannel]:
    async with await aiormq.connect(amqp_url) as connection:
        yield await connection.channel()


async def succeed(_job: Job) -> RunOutcome:
    return Succeeded()


async def hang(_job: Job) -> RunOutcome:
    await asyncio.Event().wait()
    raise AssertionError


async def test_what_waits_in_the_queue_is_left_there(conn: AsyncConnection, database_url: str, topology: str) -> None:
    """
    While messages wait in the queue nothing is sent again; an order whose message is gone then comes back once.
    """
    in_hand, waiting, lost = [(await place(conn))[0] for _ in range(3)]
    await send_all(conn)
    async with queue(topology) as channel, sweeping(database_url, topology, hang, prefetch=1) as rounds:
        for each in (in_hand, waiting):
            await channel.basic_publish(each.event.body, routing_key=WORK_QUEUE)
        await eventually(lambda: rounds.connected)
        await conn.execute(
            "INSERT INTO stragglers (order_id, row_id, due_at) SELECT key::uuid, id, clock_timestamp() FROM outbox "
            "WHERE key = ANY(%s)",
            [[str(waiting.order.order_id), str(lost.order.order_id)]],
        )
        await rounds.more()
        assert await rows(conn, AGAIN) == []

        await channel.queue_purge(WORK_QUEUE)
        await rounds.more()

        sent = {str(waiting.order.order_id), str(lost.order.order_id)}
        assert sorted(await rows(conn, AGAIN)) == sorted((each,) for each in sent)
        audit = await rows(conn, "SELECT DISTINCT command, reason FROM outbox_audit")
        assert audit == [("requeue", "nothing carried it: undelivered")]


async def test_an_order_whose_row_is_gone_is_named(
    conn: AsyncConnection, database_url: str, topology: str, caplog: pytest.LogCaptureFixture
) -> None:
    """
    An order that nothing carries, and whose outbox row was dropped, is not said to be brought back.
    """
    await place(conn)
    await send_all(conn)
    await conn.execute(
        "INSERT INTO stragglers (order_id, row_id, due_at) SELECT key::uuid, id, clock_timestamp() FROM outbox"
    )
    await conn.execute("DELETE FROM outbox")
    async with sweeping(database_url, topology, succeed):
        await eventually(lambda: "1 orders that nothing carries cannot be sent again now" in caplog.text)

    assert "brought back" not in caplog.text
    assert await rows(conn, AGAIN) == []


async def test_what_is_in_hand_is_not_sent_again(conn: AsyncConnection, database_url: str, topology: str) -> None:
    """
    An order that its worker works for long is a straggler, and nothing more.
    """
    [placed] = await place(conn)
    await send_all(conn)
    async with queue(topology) as channel, sweeping(database_url, topology, hang) as rounds:
        await channel.basic_publish(placed.event.body, routing_key=WORK_QUEUE)

        await rounds.more(50)

        assert await rows(conn, "SELECT order_id FROM stragglers") == [(placed.order.order_id,)]
        assert await rows(conn, AGAIN) == []


async def test_nothing_is_sent_again_while_events_are_unsent(
    conn: AsyncConnection, database_url: str, topology: str
) -> None:
    """
    While the relay is behind, the message of an order may be among what it has not sent: nothing is judged.
    """
    [lost] = await place(conn)
    await conn.execute("UPDATE outbox SET created_at = created_at - interval '1 minute'")
    await conn.execute(
        "INSERT INTO stragglers (order_id, row_id, due_at) SELECT order_id, 1, clock_timestamp() FROM orders"
    )
    async with sweeping(database_url, topology, succeed) as rounds:
        await rounds.more()
        assert await rows(conn, AGAIN) == []

        await send_all(conn)
        await rounds.more()

        assert await rows(conn, AGAIN) == [(str(lost.order.order_id),)]


async def test_a_server_that_keeps_its_timeline_to_itself(
    conn: AsyncConnection, database_url: str, topology: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Where the server does not tell its timeline, as some managed ones, the sweep goes on without.
    """
    monkeypatch.setattr("orders.database.stragglers_table.HISTORY", "SELECT no_such_function()")
    await place(conn)
    await send_all(conn)
    async with sweeping(database_url, topology, succeed) as rounds:
        await rounds.more(50)

    assert len(await rows(conn, AGAIN)) == 1
