"""Policies of RabbitMQ that take messages from their orders: no order fails for it, and none stands for ever."""

import asyncio
import contextlib
from collections.abc import Sequence
from uuid import UUID

import aiormq
import aiormq.exceptions
import httpx
import psycopg
import pytest
from psycopg import AsyncConnection

from dev.sandbox.servers import Servers
from dev.sandbox.system import System
from orders.broker.topology import DEAD_QUEUE, WORK_QUEUE
from orders.database import attempt_log
from tests import warm
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey.placing import DEADLY, all_are, place
from tests.journey.trace import Trace, rows
from tests.policies import put_policy, remove_policy

ORDERS = 5
FAULT = "queue 'orders.work' drops messages after message-ttl (policy 'test'): take it away"
QUICK = {"WORK_MIN_SECONDS": "0.01", "WORK_MAX_SECONDS": "0.02"}


async def expire(system: System, servers: Servers, conn: AsyncConnection, pattern: str) -> list[UUID]:
    """Place orders while the worker is away, and wait until all their messages have expired."""
    worker = system.process("worker-1")
    worker.restart = False
    await asyncio.to_thread(worker.kill)
    await put_policy(servers, system.amqp_url, pattern, {"message-ttl": 1000})
    order_ids = await place(conn, [None] * ORDERS)

    async def all_have_expired() -> bool:
        assert await rows(conn, "SELECT count(*) FROM outbox WHERE state = 'sent'") == [(ORDERS,)]
        async with await aiormq.connect(system.amqp_url) as connection:
            channel = await connection.channel()
            assert (await channel.queue_declare(DEAD_QUEUE, passive=True)).message_count == ORDERS
        return True

    await eventually(all_have_expired, 30)
    return order_ids


async def names_the_policy(url: str) -> bool:
    """Whether a process shows the fault of the work queue; to be asked eventually."""
    async with httpx.AsyncClient(trust_env=False) as client:
        [fault] = (await client.get(f"{url}/status")).json()["policy_faults"]
        metrics = (await client.get(f"{url}/metrics")).text
    assert (fault["queue"], fault["policy"], fault["limit"]) == ("orders.work", "'test'", "message-ttl")
    assert fault["text"] == FAULT
    assert """_policy_faults{policy="'test'",queue="orders.work"} 1.0""" in metrics
    return True


async def outcomes(conn: AsyncConnection, order_ids: Sequence[UUID]) -> set[str]:
    """Every way in which an attempt at one of these orders ended."""
    logs = [await attempt_log.read(conn, order_id) for order_id in order_ids]
    return {attempt.outcome for log in logs for attempt in log or ()}


async def test_messages_expire_in_the_work_queue(start_system: StartSystem, servers: Servers) -> None:
    """
    An order whose message expired comes back by itself: it is done, nothing is counted against it, and logs, `/status`
    and metrics of worker and relay name the policy.
    """
    management = servers.management_url or ""
    settings = {
        "ORDERS_MANAGEMENT_URL": management, "RELAY_MANAGEMENT_URL": management, "RELAY_UPKEEP_SECONDS": "0.5",
    }  # fmt: skip
    system = start_system(apis=0, with_nginx=False, settings=QUICK | settings)
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        order_ids = await expire(system, servers, conn, "^orders.work$")
        system.process("worker-1").start()

        await eventually(lambda: all_are(conn, {"done": ORDERS}), 60)
        assert await rows(conn, "SELECT DISTINCT attempts, failures FROM orders") == [(1, 0)]
        assert await rows(conn, "SELECT count(*) FROM dead_letters") == [(0,)]
        assert await outcomes(conn, order_ids) == {"expired", "done"}

        for name, url in (("worker-1", system.worker_urls[0]), ("relay-1", system.relay_urls[0])):
            await eventually(lambda url=url: names_the_policy(url), 20)  # type: ignore[misc]
            assert FAULT in system.process(name).log.read_text()
        log = system.process("worker-1").log.read_text()
        assert log.count("messages of orders.work are in orders.dead (expired): ") == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("pattern", "definition"), [(".*", {"message-ttl": 500}), ("^orders.work$", {"expires": 6000})]
)
async def test_messages_that_no_queue_holds(
    pattern: str, definition: dict[str, object], start_system: StartSystem, servers: Servers
) -> None:
    """
    Orders whose messages vanished without a trace, in both queues or with their queue, are done by themselves.
    """
    system = start_system(apis=0, with_nginx=False, settings=QUICK)
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        worker = system.process("worker-1")
        worker.restart = False
        await asyncio.to_thread(worker.kill)
        await put_policy(servers, system.amqp_url, pattern, definition)
        order_ids = await place(conn, [None] * ORDERS)
        await eventually(lambda: all_are_sent(conn), 20)
        await eventually(lambda: nothing_is_held(system), 30)
        await remove_policy(servers, system.amqp_url)
        warm.declare_topology(system.amqp_url)
        # What makes the sweep of lost orders quick: a server that was promoted just now.
        await conn.execute("UPDATE sweep SET changed_at = clock_timestamp()")
        worker.start()

        await eventually(lambda: all_are(conn, {"done": ORDERS}), 90)
        assert await rows(conn, "SELECT DISTINCT attempts, failures FROM orders") == [(1, 0)]
        assert await rows(conn, "SELECT count(*) FROM outbox WHERE routing_key = 'order.done'") == [(len(order_ids),)]


async def all_are_sent(conn: AsyncConnection) -> bool:
    return await rows(conn, "SELECT count(*) FROM outbox WHERE state = 'sent'") == [(ORDERS,)]


async def nothing_is_held(system: System) -> bool:
    """Whether both queues are empty or gone; to be asked eventually."""
    async with await aiormq.connect(system.amqp_url) as connection:
        for queue in (WORK_QUEUE, DEAD_QUEUE):
            with contextlib.suppress(aiormq.exceptions.ChannelNotFoundEntity):
                channel = await connection.channel()
                assert (await channel.queue_declare(queue, passive=True)).message_count == 0
    return True


async def test_messages_expire_while_workers_are_full(start_system: StartSystem, servers: Servers) -> None:
    """
    Under message-ttl for all queues more orders than a worker can take are done all the same, each once.
    """
    settings = {"WORK_MIN_SECONDS": "0.4", "WORK_MAX_SECONDS": "0.4", "WORKER_CONCURRENCY": "1"}
    system = start_system(apis=0, with_nginx=False, settings=settings)
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        await put_policy(servers, system.amqp_url, ".*", {"message-ttl": 1000})
        order_ids = await place(conn, [None] * 12)

        await eventually(lambda: all_are(conn, {"done": 12}), 120)
        assert await rows(conn, "SELECT DISTINCT attempts, failures FROM orders") == [(1, 0)]
        assert await rows(conn, "SELECT count(*) FROM outbox WHERE routing_key = 'order.done'") == [(12,)]
        assert "expired" in await outcomes(conn, order_ids)


async def test_workers_are_killed_under_a_low_delivery_limit(
    start_system: StartSystem, servers: Servers, trace: Trace
) -> None:
    """
    An operator policy that gives messages up after two returns fails no order whose workers were killed.
    """
    system = start_system(apis=0, with_nginx=False, settings=trace.settings)
    limit: dict[str, object] = {"delivery-limit": 2}
    await put_policy(servers, system.amqp_url, ".*", limit, kind="operator-policies")
    trace.close_gate()
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        order_ids = await place(conn, [None] * 3)
        for kills in range(1, 4):
            await eventually(lambda runs=3 * kills: trace.count("started").total() >= runs, 40)  # type: ignore[misc]
            await asyncio.to_thread(system.process("worker-1").kill)
        trace.open_gate()

        await eventually(lambda: all_are(conn, {"done": 3}), 60)
        assert await rows(conn, "SELECT max(failures) FROM orders") == [(0,)]
        assert await rows(conn, "SELECT count(*) FROM dead_letters") == [(0,)]
        assert "delivery_limit" in await outcomes(conn, order_ids)
        assert trace.count("effects") == dict.fromkeys(order_ids, 1)


async def test_poison_under_a_low_delivery_limit(start_system: StartSystem, servers: Servers) -> None:
    """
    An order that kills each worker is found and fails, though the broker gives its message up before.
    """
    settings = {"ORDERS_HANDLER": "tests.journey.work_handlers:mixed"}
    system = start_system(apis=0, with_nginx=False, settings=settings)
    limit: dict[str, object] = {"delivery-limit": 0}
    await put_policy(servers, system.amqp_url, "^orders.work$", limit, kind="operator-policies")
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        await place(conn, [DEADLY])

        await eventually(lambda: all_are(conn, {"failed": 1}), 60)
        assert await rows(conn, "SELECT kind FROM dead_letters") == [("deadly",)]
