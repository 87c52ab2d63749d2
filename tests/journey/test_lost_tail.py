"""A standby is promoted that lacks the newest commits, and nobody carries the orders that they were about."""

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg import AsyncConnection

from dev.sandbox.local_postgres import LocalPostgres
from dev.sandbox.servers import Servers, new_folder
from dev.sandbox.system import Counts, System
from tests import places, warm
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey import shoppers
from tests.journey.recorder import Recorder
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


@pytest.mark.long
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


STATUSES: LiteralString = "SELECT status, count(*) FROM orders GROUP BY status ORDER BY status"
EVENTS: LiteralString = "SELECT id, event_id FROM outbox"
LETTERS: LiteralString = "SELECT kind, count(*) FROM dead_letters GROUP BY kind"
LOGS: LiteralString = "SELECT DISTINCT jsonb_path_query_array(attempt_log, '$[*].outcome')::text FROM orders"
IN_HAND = 4  # orders of a worker


@pytest.fixture
def pair() -> Iterator[tuple[LocalPostgres, LocalPostgres]]:
    """A server, and another that replicates it asynchronously."""
    folders = [new_folder("orders-primary-"), new_folder("orders-standby-")]
    servers: list[LocalPostgres] = []
    try:
        servers.append(LocalPostgres(folders[0], None, restart=False, throwaway=True, flushes=False))
        servers[0].start()
        servers.append(servers[0].standby(folders[1]))
        servers[1].start()
        yield servers[0], servers[1]
    finally:
        for server in servers:
            server.stop()
        for folder in folders:
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)


async def cut_off(standby: AsyncConnection) -> None:
    """Have the standby receive nothing more. It would replay what it has received, also if its replay were paused."""
    await standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
    await standby.execute("SELECT pg_reload_conf()")

    async def receives_nothing() -> bool:
        return await rows(standby, "SELECT count(*) FROM pg_stat_wal_receiver") == [(0,)]

    await eventually(receives_nothing, 20)


def both(primary: LocalPostgres, standby: LocalPostgres) -> str:
    """One URL with both servers in it."""
    return f"{primary.url.rpartition('/')[0]},{standby.url.rpartition('@')[2]}"


async def place_with_key(base_url: str, key: str) -> UUID:
    async with shoppers.client(base_url) as http:
        answer = await http.post("/orders", json=shoppers.ORDER, headers={"Idempotency-Key": key})
    return UUID(answer.json()["order_id"])


@pytest.mark.long
async def test_an_asynchronous_standby_is_promoted(
    pair: tuple[LocalPostgres, LocalPostgres], servers: Servers, trace: Trace, tmp_path: Path
) -> None:
    """
    Every order that survived ends by itself; those of the lost tail are gone, as the docs say, and their ids come anew.
    """
    primary, standby = pair
    settings = trace.settings | {"WORKER_CONCURRENCY": str(IN_HAND)}
    with (
        places.vhost(servers) as amqp_url,
        System(
            both(primary, standby),
            amqp_url,
            tmp_path,
            Counts(apis=1, relays=1, workers=2),
            settings=settings,
            with_nginx=False,
            launch=warm.launch,
        ) as system,
    ):
        recorder = Recorder(amqp_url)
        await recorder.subscribe()
        url = system.base_url
        async with (
            await AsyncConnection.connect(primary.url, autocommit=True) as old,
            await AsyncConnection.connect(standby.url, autocommit=True) as new,
        ):
            kept = await shoppers.place(url, 10)
            await settled(old)
            trace.close_gate()
            unfinished = await shoppers.place(url, 2 * IN_HAND)
            await eventually(lambda: trace.count("started").total() == 10 + 2 * IN_HAND, 20)
            unclaimed = await shoppers.place(url, 3)

            async def is_replicated() -> bool:
                assert await rows(new, STATUSES) == [("done", 10), ("placed", 3), ("processing", 2 * IN_HAND)]
                return await rows(new, "SELECT count(*) FROM outbox WHERE state <> 'sent'") == [(0,)]

            await eventually(is_replicated, 20)

            await cut_off(new)
            trace.open_gate()
            lost = [*await shoppers.place(url, 40), await place_with_key(url, "lost")]
            await settled(old)
            trace.close_gate()
            in_hand = await shoppers.place(url, 2 * IN_HAND)
            await eventually(lambda: in_hand[-1] in trace.count("started") or len(trace.count("started")) == 70, 20)
            waiting = await shoppers.place(url, 2)

            async def all_is_sent() -> bool:
                return await rows(old, "SELECT count(*) FROM outbox WHERE state <> 'sent'") == [(0,)]

            await eventually(all_is_sent, 20)
            lost_events = await rows(old, EVENTS)
        await asyncio.to_thread(primary.kill)

        async with await AsyncConnection.connect(standby.url, autocommit=True) as new:
            await new.execute("SELECT pg_promote()")
            trace.open_gate()
            stories = await settled(new)
            again = await place_with_key(url, "lost")
            placed = await shoppers.place(url, 10)
            stories = await settled(new)

            assert stories.keys() == {*kept, *unfinished, *unclaimed, *placed, again}
            assert again not in lost
            effects = trace.count("effects")
            assert {each: effects[each] for each in stories} == dict.fromkeys(stories, 1) | dict.fromkeys(
                (*unfinished, *unclaimed), 2
            )
            assert set(effects) == {*stories, *lost, *in_hand}
            assert set(await rows(new, LOGS)) == {(None,), ('["end lost", "done"]',)}
            assert await rows(new, LETTERS) == [("unknown", len(waiting))]

            used_again = {row[0] for row in {*await rows(new, EVENTS)} - {*lost_events}} & {
                row[0] for row in lost_events
            }
            assert used_again, "the sequence begins again within the lost tail"
            await recorder.heard_all({event_id for story in stories.values() for event_id in story.event_ids})
            ends = {
                (event.envelope.id, event.envelope.data.version)
                for event in recorder.heard
                if event.envelope.data.order_id == unclaimed[0] and event.envelope.type == "order.done"
            }
            assert len(ends) == 2
            assert {version for _, version in ends} == {3}
