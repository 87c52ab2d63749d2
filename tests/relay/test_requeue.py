"""What was sent is sent again: in order, before what is newer, and nothing else."""

import asyncio
import datetime
from typing import Any

import pytest
from psycopg import AsyncConnection

from relay import operate, outbox_repairs
from tests.eventually import eventually
from tests.relay.conftest import StartRelay
from tests.relay.service import append, append_many, becomes, broker, operator, recording, state_of, states


async def test_requeue(conn: AsyncConnection, database_url: str, topology: str, start_relay: StartRelay) -> None:
    """
    Sent rows are sent again in order, only those chosen, after a dry run that changes nothing, and the audit says so.
    """
    start_relay()
    for number in range(1, 6):
        await append(conn, "a", str(number).encode())
    await append(conn, "b", b"other", routing_key="order.redriven")
    await becomes({"sent": 6}, lambda: states(conn), 20)
    async with broker(topology) as channel:
        await channel.queue_purge("orders.work")

    dry = await asyncio.to_thread(
        operator, database_url, "requeue", "--since", "1h", "--type", "order.placed", "--dry-run"
    )
    assert dry[1] == "5 rows would be sent again\n"
    done = await asyncio.to_thread(
        operator, database_url, "requeue", "--since", "1h", "--type", "order.placed", "--rate", "100"
    )
    assert done[1] == "5 rows are sent again\n"
    async with recording(topology) as recorder:
        await eventually(lambda: len(recorder.messages) >= 5)

    assert recorder.bodies() == [b"1", b"2", b"3", b"4", b"5"]
    await becomes({"sent": 6}, lambda: states(conn))
    audit = await (await conn.execute("SELECT command, rows FROM outbox_audit")).fetchall()
    assert audit == [("requeue", 5)]


async def test_a_requeue_goes_before_what_is_newer(
    conn: AsyncConnection, database_url: str, topology: str, start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A key's rows are in several steps of a requeue, and a new one comes in between: the new one goes behind all of them.
    """
    relay = start_relay()
    await append_many(conn, 6, keys=1)
    await becomes({"sent": 6}, lambda: states(conn), 20)
    relay.stop()
    async with broker(topology) as channel:
        await channel.queue_purge("orders.work")
    steps = 0
    park_sent = outbox_repairs.park_sent

    async def append_and_park(*args: Any) -> int:
        nonlocal steps
        steps += 1
        if steps == 2:
            relay.start()
            await append(conn, "key-0", b"6")
            await becomes("parked", lambda: state_of(conn, 7), 20)
        return await park_sent(*args)

    monkeypatch.setattr(outbox_repairs, "park_sent", append_and_park)
    monkeypatch.setattr(operate, "CHUNK", 2)
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert await asyncio.to_thread(operate.operate, operate.parse(["requeue", "--since", "1h"])) == 0
    assert steps == 3
    await becomes({"sent": 7}, lambda: states(conn), 20)
    async with recording(topology) as recorder:
        await eventually(lambda: len(recorder.messages) >= 7)

    assert recorder.bodies() == [b"0", b"1", b"2", b"3", b"4", b"5", b"6"]


async def test_a_requeue_comes_to_the_rejected_row_again(
    conn: AsyncConnection, database_url: str, topology: str, start_relay: StartRelay
) -> None:
    """
    What was sent of a key before its rejected row is sent again, and the key is blocked by that row again, not another.
    """
    start_relay()
    await append(conn, "key", b"0")
    rejected = await append(conn, "key", headers='{"x": ' + "[" * 1000 + "]" * 1000 + "}")
    await becomes({"sent": 1, "parked": 1}, lambda: states(conn), 20)
    await eventually(lambda: _blocked_by(conn, rejected))
    async with broker(topology) as channel:
        await channel.queue_purge("orders.work")

    assert (await asyncio.to_thread(operator, database_url, "requeue", "--since", "1h"))[0] == 0
    async with recording(topology) as recorder:
        await eventually(lambda: len(recorder.messages) == 1)
    await becomes({"sent": 1, "parked": 1}, lambda: states(conn), 20)
    await eventually(lambda: _blocked_by(conn, rejected))


async def _blocked_by(conn: AsyncConnection, row_id: int) -> bool:
    found = await (
        await conn.execute("SELECT head FROM outbox_waiting WHERE blocked AND reason NOT LIKE 'held by%'")
    ).fetchall()
    return found == [(row_id,)]


async def test_a_killed_requeue_is_taken_up_by_retry(
    conn: AsyncConnection, database_url: str, start_relay: StartRelay
) -> None:
    """
    A requeue that ends in the middle leaves keys that say so; `retry --all` lets them go.
    """
    relay = start_relay()
    await append(conn)
    await becomes({"sent": 1}, lambda: states(conn), 20)
    async with await AsyncConnection.connect(database_url, autocommit=True) as own:
        chosen = outbox_repairs.RequeueFilter(since=datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1))
        audit_id = await outbox_repairs.open_requeue(own, chosen, "test")
        found = await outbox_repairs.sent_rows(own, chosen, outbox_repairs.IdRange(0, 1), 10)
        await outbox_repairs.park_sent(own, audit_id, found)
    await becomes(1, lambda: relay.says("blocked_keys"))
    assert "held by requeue" in (await asyncio.to_thread(operator, database_url, "blocked"))[1]

    assert await asyncio.to_thread(operator, database_url, "retry", "--all") == (0, "1 keys are tried again\n", "")
    await becomes({"sent": 1}, lambda: states(conn))
