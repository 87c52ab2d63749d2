"""`orders reconcile` on a real database: what was planted is found, what is healthy or young is not."""

import asyncio
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import aiormq
import psycopg
import pytest
from psycopg import AsyncConnection

from dev.sandbox.system import Counts
from orders.broker.topology import WORK_QUEUE
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey import shoppers
from tests.journey.trace import Trace
from tests.orders.planted import HEALTHY, Told, plant, tell
from tests.orders.tools.reconcile.conftest import exit_and_findings, found, reconcile

Anomaly = tuple[str, str, str, int, int | None, Sequence[Told]]


PLACED: Told = ("order.placed", 1, "sent")


DONE: Told = ("order.done", 3, "unrouted")


ANOMALIES: dict[str, Anomaly] = {
    "an order with no outbox row": ("lost", "event_missing", "placed", 1, None, ()),
    "a row marked sent that never reached the consumer": ("lost", "undelivered", "placed", 1, None, (PLACED,)),
    "an order stuck in processing with no message": ("stuck", "unworked", "processing", 2, 4711, (PLACED,)),
    "two done events": ("doubled", "event_twice", "done", 3, None, (PLACED, DONE, DONE)),
    "events out of order": ("out_of_order", "versions_descend", "done", 3, None, (DONE, PLACED)),
    "a row that nobody sends": ("stuck", "unsent", "placed", 1, None, (("order.placed", 1, "pending"),)),
    "an end that was not told": ("lost", "event_missing", "failed", 3, None, (PLACED,)),
}


@pytest.mark.parametrize("anomaly", ANOMALIES.values(), ids=ANOMALIES)
async def test_a_planted_anomaly_is_found(database_url: str, conn: AsyncConnection, anomaly: Anomaly) -> None:
    """
    Each kind is found among healthy orders, with its reason, and the exit code says so.
    """
    kind, cause, status, version, worker, told = anomaly
    await plant(conn)
    wrong = await plant(conn, told, status=status, version=version, worker=worker)
    await plant(conn)

    code, report = await reconcile(database_url)

    assert (code, report["ok"]) == (1, False)
    assert [(kind, cause, wrong)] == found(report)
    assert report["counts"][kind] == 1
    assert report["orders"] == 3


async def test_a_healthy_database_exits_with_0(database_url: str, conn: AsyncConnection) -> None:
    """
    Also with an order that failed, one that was cancelled, and one that was redriven.
    """
    placed: Told = ("order.placed", 1, "sent")
    await plant(conn)
    await plant(conn, [placed, ("order.failed", 3, "unrouted")], status="failed")
    await plant(conn, [placed, ("order.cancelled", 2, "unrouted")], status="cancelled", version=2)
    again: list[Told] = [placed, ("order.failed", 3, "unrouted"), ("order.redriven", 4, "sent")]
    await plant(conn, [*again, ("order.done", 6, "unrouted")], version=6)

    assert await exit_and_findings(database_url) == (0, [])


async def test_an_order_whose_worker_lives_is_not_stuck(database_url: str, conn: AsyncConnection) -> None:
    """
    Whoever holds the advisory lock of the worker works it, however long.
    """
    await plant(conn, [("order.placed", 1, "sent")], status="processing", version=2, worker=4711)
    await conn.execute("SELECT pg_advisory_lock('orders'::regclass::oid::integer, 4711)")

    assert await exit_and_findings(database_url) == (0, [])


async def test_what_is_young_is_waited_for(database_url: str, conn: AsyncConnection) -> None:
    """
    An order that is under way when it is first looked at, and through a moment later, is not reported.
    """
    order_id = await plant(conn, [("order.placed", 1, "sent")], status="placed", version=1)
    await conn.execute("UPDATE orders SET updated_at = clock_timestamp() WHERE order_id = %s", [order_id])

    looking = asyncio.create_task(reconcile(database_url, "--grace", "20"), name="reconcile")
    async with await AsyncConnection.connect(database_url, autocommit=True) as other:

        async def somebody_looked() -> bool:
            cursor = await other.execute(
                "SELECT FROM pg_stat_activity WHERE application_name = 'orders-reconcile'"
                " AND query LIKE '%outbox_audit%' AND state = 'idle' AND datname = current_database()"
            )
            return cursor.rowcount > 0

        await eventually(somebody_looked)
    await conn.execute(
        "UPDATE orders SET status = 'processing', worker = 1, version = 2 WHERE order_id = %s", [order_id]
    )
    await tell(conn, order_id, "order.done", 3, "unrouted")
    await conn.execute(
        "UPDATE orders SET status = 'done', version = 3, worker = NULL, finished_at = now() WHERE order_id = %s",
        [order_id],
    )
    code, report = await looking

    assert (code, found(report)) == (0, [])


async def wait_for_retry(conn: AsyncConnection, order_id: UUID, seconds: float) -> None:
    """Write the retry of an order, due in `seconds`."""
    await conn.execute(
        "INSERT INTO retries (order_id, due_at, event_id, body, traceparent)"
        " VALUES (%s, now() + make_interval(secs => %s), %s, '{}', '')",
        [order_id, seconds, uuid.uuid4()],
    )


async def test_an_order_that_waits_for_a_retry_is_waiting(database_url: str, conn: AsyncConnection) -> None:
    """
    An order that its handler postponed for an hour delays nothing: the report has it as waiting, since, and until.
    """
    order_id = await plant(conn, [PLACED], status="processing", version=2, worker=0)
    await wait_for_retry(conn, order_id, 3600)

    async with asyncio.timeout(30):
        code, report = await reconcile(database_url, "--grace", "1")

    assert (code, found(report), report["waiting_for_retry"]) == (0, [], 1)
    [wait] = report["retries"]
    assert wait["order_id"] == str(order_id)
    assert wait["until"] - wait["since"] == pytest.approx(7200, abs=60)


async def test_a_retry_that_came_due_and_was_not_sent_is_stuck(database_url: str, conn: AsyncConnection) -> None:
    """
    Behind its time a retry is a fault, and so is another fault of an order that waits.
    """
    late = await plant(conn, [PLACED], status="processing", version=2, worker=0)
    await wait_for_retry(conn, late, -600)
    doubled = await plant(conn, [PLACED, PLACED], status="processing", version=2, worker=0)
    await wait_for_retry(conn, doubled, 3600)

    code, report = await reconcile(database_url, "--grace", "1")

    assert code == 1
    assert {("stuck", "unworked", late), ("doubled", "event_twice", doubled)} == set(found(report))
    assert report["waiting_for_retry"] == 0


async def test_a_fast_clock_of_an_api_delays_nothing(database_url: str, conn: AsyncConnection) -> None:
    """
    An order from an api whose clock is an hour ahead is not under way for an hour.
    """
    order_id = await plant(conn, [PLACED], status="placed", version=1)
    await conn.execute("UPDATE orders SET updated_at = now() + interval '1 hour' WHERE order_id = %s", [order_id])

    async with asyncio.timeout(30):
        code, report = await reconcile(database_url, "--grace", "1")

    assert (code, found(report)) == (1, [("lost", "undelivered", order_id)])


async def test_it_reads_only(database_url: str, conn: AsyncConnection) -> None:
    """
    Not a row is written: each is the version that it was.
    """
    await plant(conn, HEALTHY)
    await plant(conn, [], status="placed", version=1)

    async def versions() -> list[Any]:
        cursor = await conn.execute("SELECT xmin, xmax, ctid FROM orders UNION ALL SELECT xmin, xmax, ctid FROM outbox")
        return await cursor.fetchall()

    before = await versions()
    await reconcile(database_url)

    assert before == await versions()


@pytest.mark.long
@pytest.mark.parametrize("how", ["deleted", "purged"])
async def test_what_the_broker_lost_is_sent_again(start_system: StartSystem, tmp_path: Path, how: str) -> None:
    """
    A work queue that is deleted or purged with messages in it: each is found, sent again, worked once, and audited.
    """
    trace = Trace(tmp_path)
    system = start_system(apis=1, workers=0, with_nginx=False)
    placed = await shoppers.place(system.base_url, 40)
    async with await aiormq.connect(system.amqp_url) as connection:
        channel = await connection.channel()
        async with await AsyncConnection.connect(system.database_url, autocommit=True) as conn:
            await eventually(lambda: all_sent(conn, len(placed)))
        if how == "deleted":
            await channel.queue_delete(WORK_QUEUE)
        else:
            await channel.queue_purge(WORK_QUEUE)
    system.migrate()  # `orders topology`
    urls = {"amqp_url": system.amqp_url}

    code, report = await reconcile(system.database_url, "--grace", "0", "--broker", **urls)
    assert (code, report["counts"]["lost"], report["repaired"]) == (1, 40, 0)

    _, report = await reconcile(system.database_url, "--grace", "0", "--repair", **urls)
    assert report["repaired"] == 40

    waiting = await reconcile(system.database_url, "--grace", "5", "--broker", **urls)
    assert (waiting[0], waiting[1]["waiting"]) == (0, 40)

    system.change(trace.settings)
    system.scale(Counts(apis=1, relays=1, workers=1))
    async with await AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        await eventually(lambda: all_done(conn, len(placed)), 30)
    assert dict.fromkeys(placed, 1) == trace.count("effects")
    assert await exit_and_findings(system.database_url) == (0, [])
    with psycopg.connect(system.database_url) as audit:
        rows = audit.execute("SELECT key, command, reason FROM outbox_audit ORDER BY row_id").fetchall()
        first_sent = audit.execute("SELECT key FROM outbox WHERE routing_key = 'order.placed' ORDER BY id").fetchall()
    assert first_sent == [row[:1] for row in rows]
    assert {("requeue", "orders reconcile --repair: undelivered")} == {row[1:] for row in rows}


async def all_sent(conn: AsyncConnection, many: int) -> bool:
    cursor = await conn.execute("SELECT count(*) FROM outbox WHERE state = 'sent'")
    return await cursor.fetchone() == (many,)


async def all_done(conn: AsyncConnection, many: int) -> bool:
    cursor = await conn.execute("SELECT count(*) FROM orders WHERE status = 'done'")
    return await cursor.fetchone() == (many,)
