"""A standby is promoted that lacks the newest commits, and nobody carries the orders that they were about."""

from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

import psycopg
from psycopg import AsyncConnection

from dev.sandbox.system import System
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey import shoppers
from tests.journey.trace import Trace, rows, settled

UNCLAIM: LiteralString = """
    UPDATE orders SET status = 'placed', version = 1, attempts = 0, worker = NULL, finished_at = NULL
    WHERE order_id = ANY(%s)
"""
UNFINISH: LiteralString = """
    UPDATE orders SET status = 'processing', version = 2, worker = %s, finished_at = NULL WHERE order_id = ANY(%s)
"""
FORGET_ENDS: LiteralString = "DELETE FROM outbox WHERE routing_key = 'order.done' AND key = ANY(%s)"
WORKERS: LiteralString = """
    SELECT objid::bigint FROM pg_locks WHERE classid = 'orders'::regclass::oid AND objsubid = 2
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
# A promotion ends every session of the old server.
END_SESSIONS: LiteralString = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'orders-sweep'
"""
GONE = 4711  # the lock of a worker that is not there


async def promote_a_stale_copy(
    conn: AsyncConnection, unclaimed: Sequence[UUID], unfinished: Sequence[UUID], vanished: Sequence[UUID]
) -> None:
    """Have the database lack what a copy would lack: claims, ends of living workers, and ends of one that is gone."""
    [worker] = await rows(conn, WORKERS)
    async with conn.transaction():
        await conn.execute(UNCLAIM, [unclaimed])
        await conn.execute(UNFINISH, [worker[0], unfinished])
        await conn.execute(UNFINISH, [GONE, vanished])
        await conn.execute(FORGET_ENDS, [[str(each) for each in (*unclaimed, *unfinished, *vanished)]])
        await conn.execute("UPDATE sweep SET timeline = timeline - 1")
    await conn.execute(END_SESSIONS)


async def brought_back(system: System) -> int:
    status = (await shoppers.get(f"{system.worker_urls[0]}/status")).json()
    return int(status["brought_back"])


async def test_orders_whose_claim_or_end_is_lost_are_worked_again(start_system: StartSystem, trace: Trace) -> None:
    """
    Orders whose message was acked come back by themselves, each once, and nobody else's message is sent again.
    """
    system = start_system(apis=1, with_nginx=False, settings=trace.settings)
    accepted = await shoppers.place(system.base_url, 12)
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        await settled(conn)

        await promote_a_stale_copy(conn, accepted[:3], accepted[3:6], accepted[6:9])
        await settled(conn)

        assert trace.count("effects") == {each: 2 if each in accepted[:9] else 1 for each in accepted}
        assert await rows(conn, "SELECT count(*) FROM outbox WHERE exchange = ''") == [(9,)]
        assert await rows(conn, "SELECT count(*) FROM outbox WHERE routing_key = 'order.done'") == [(12,)]
    assert await brought_back(system) == 9
    await eventually(lambda: trace.count("effects").total() == 21)
