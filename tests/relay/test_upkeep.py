"""Partitions: made ahead, dropped after their time, never with a row that is still to be sent."""

import asyncio
from typing import LiteralString

import httpx
import pytest
from psycopg import AsyncConnection, IsolationLevel

from relay import outbox_partitions
from relay.outbox_table import be_present
from relay.settings import Settings
from relay.state import RelayState
from relay.upkeep import look_after
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.relay.conftest import StartRelay
from tests.relay.service import RelayProcess, append, append_many, becomes, recording, states

SMALL = 10
LATE = b"late"


def settings(database_url: str, retention: str) -> Settings:
    environ = {"DATABASE_URL": database_url, "AMQP_URL": "amqp://nobody", "RELAY_PARTITIONS_AHEAD": "2"}
    return Settings.read({**environ, "RELAY_RETENTION": retention})


async def shrink(conn: AsyncConnection) -> None:
    """Begin anew, with partitions of ten rows."""
    names = [row[0] for row in await (await conn.execute("SELECT inhrelid::regclass::text FROM pg_inherits "
        "WHERE inhparent = 'outbox'::regclass")).fetchall()]  # fmt: skip
    for name in names:
        await conn.execute(f"DROP TABLE {name}".encode())
    await conn.execute("UPDATE outbox_mark SET partition_rows = %s", (SMALL,))
    await conn.execute("SELECT outbox_add_partitions(3)")


async def lows(conn: AsyncConnection) -> list[int]:
    """The first id of each partition."""
    rows = await (
        await conn.execute(
            "SELECT substring(inhrelid::regclass::text FROM '[0-9]+$')::bigint FROM pg_inherits "
            "WHERE inhparent = 'outbox'::regclass ORDER BY 1"
        )
    ).fetchall()
    return [row[0] for row in rows]


async def send_all(conn: AsyncConnection, mark: int) -> None:
    """Settle what is there, and let the saved mark be where a relay would have it."""
    await conn.execute("UPDATE outbox SET state = 'sent', settled_at = clock_timestamp() WHERE state = 'pending'")
    await conn.execute("UPDATE outbox_mark SET mark = %s", (mark,))


async def test_made_ahead_and_dropped_behind(conn: AsyncConnection, database_url: str) -> None:
    """
    What the mark has passed and retention releases is dropped; what comes is made; the rest stays.
    """
    await shrink(conn)
    for _ in range(25):
        await append(conn)
    await send_all(conn, mark=20)
    state = RelayState()

    await look_after(settings(database_url, "1h"), state)
    assert await lows(conn) == [1, 11, 21, 31, 41]
    await look_after(settings(database_url, "0"), state)

    assert await lows(conn) == [21, 31, 41]
    assert await states(conn) == {"sent": 5}


async def test_a_report_that_locks_the_outbox_first_keeps_its_rows(conn: AsyncConnection, database_url: str) -> None:
    """
    A report in one snapshot whose first statement locks the outbox sees all rows; without the lock it loses them.
    """
    await shrink(conn)
    for _ in range(25):
        await append(conn)
    await send_all(conn, mark=25)
    count: LiteralString = "SELECT count(*) FROM outbox"

    async def is_detaching() -> bool:
        return await (await conn.execute("SELECT count(*) FROM outbox_detached")).fetchone() != (0,)

    async with await AsyncConnection.connect(database_url) as report:
        await report.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        await report.execute("LOCK TABLE outbox IN ACCESS SHARE MODE")
        await report.execute("SELECT FROM orders")  # takes the snapshot
        keeping = asyncio.create_task(look_after(settings(database_url, "0"), RelayState()))
        await eventually(is_detaching)
        assert await (await report.execute(count)).fetchone() == (25,)
        await report.commit()
        await asyncio.gather(keeping, return_exceptions=True)

        await report.execute("SELECT FROM orders")
        await look_after(settings(database_url, "0"), RelayState())
        assert await (await report.execute(count)).fetchone() == (5,)
    assert await lows(conn) == [21, 31, 41]


async def test_kept_while_claimers_are_at_work(conn: AsyncConnection, database_url: str) -> None:
    """
    Under a lasting backlog all claimers of a relay stay connected, and the partitions are kept all the same.
    """
    await shrink(conn)
    await be_present(conn, first=True)
    await be_present(conn, first=False)
    for _ in range(25):
        await append(conn)

    await look_after(settings(database_url, "1h"), RelayState())

    assert await lows(conn) == [1, 11, 21, 31, 41]


async def test_a_requeued_row_is_not_dropped(conn: AsyncConnection, database_url: str) -> None:
    """
    A row that is pending after all, when its partition is detached already, brings the partition back.
    """
    await shrink(conn)
    for _ in range(15):
        await append(conn)
    await send_all(conn, mark=15)
    await conn.execute("UPDATE outbox SET state = 'pending', settled_at = NULL WHERE id = 3")

    await look_after(settings(database_url, "0"), RelayState())

    assert 1 in await lows(conn)
    assert await states(conn) == {"pending": 1, "sent": 14}


async def test_a_parked_row_keeps_its_partition(conn: AsyncConnection, database_url: str) -> None:
    """
    While a row waits, its partition is not touched.
    """
    await shrink(conn)
    for _ in range(15):
        await append(conn)
    await send_all(conn, mark=15)
    await conn.execute(
        "INSERT INTO outbox_parked SELECT id, shard, key, exchange, routing_key FROM outbox WHERE id = 3"
    )
    await conn.execute("UPDATE outbox SET state = 'parked', settled_at = NULL WHERE id = 3")

    await look_after(settings(database_url, "0"), RelayState())

    assert (await lows(conn))[0] == 1


async def tables(conn: AsyncConnection) -> list[str]:
    """The tables that are or were partitions."""
    rows = await (
        await conn.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'outbox_from_%' ORDER BY oid"
        )
    ).fetchall()
    return [row[0] for row in rows]


@pytest.mark.parametrize("how", ["", "CONCURRENTLY"])
async def test_a_partition_that_a_person_detached_is_left_alone(
    conn: AsyncConnection, database_url: str, how: LiteralString
) -> None:
    """
    A partition that was detached by hand, to archive it, stays as it is; those behind it go when their time has come.
    """
    await shrink(conn)
    for _ in range(25):
        await append(conn)
    await send_all(conn, mark=25)
    await conn.execute(f"ALTER TABLE outbox DETACH PARTITION outbox_from_1 {how}".encode())
    state = RelayState()

    await look_after(settings(database_url, "0"), state)

    assert await lows(conn) == [21, 31, 41]
    assert await tables(conn) == ["outbox_from_1", "outbox_from_21", "outbox_from_31", "outbox_from_41"]
    assert state.partitions_left == {"outbox_from_1"}


async def test_a_keeper_dies_between_the_detaching_and_the_drop(conn: AsyncConnection, database_url: str) -> None:
    """
    The next keeper drops what the last one detached, and puts it back if a row of it is to be sent again; it takes the
    bounds from its own record, since not every PostgreSQL leaves them on the table.
    """
    await shrink(conn)
    for _ in range(25):
        await append(conn)
    await send_all(conn, mark=25)
    for partition in (await outbox_partitions.partitions(conn))[:2]:
        await outbox_partitions.detach(conn, partition)
        constraints = await conn.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'c' "
            "AND pg_get_constraintdef(oid) LIKE '%%id >= %%'", [partition.name]
        )  # fmt: skip
        for (name,) in await constraints.fetchall():
            await conn.execute(f'ALTER TABLE {partition.name} DROP CONSTRAINT "{name}"'.encode())
    await conn.execute("UPDATE outbox_from_11 SET state = 'pending', settled_at = NULL WHERE id = 12")
    state = RelayState()

    await look_after(settings(database_url, "1h"), state)

    assert await lows(conn) == [11, 21, 31, 41]
    assert await tables(conn) == ["outbox_from_11", "outbox_from_21", "outbox_from_31", "outbox_from_41"]
    assert state.partitions_left == set()


async def test_a_partition_that_came_back_is_a_persons_again(conn: AsyncConnection, database_url: str) -> None:
    """
    Once a detached partition has been attached by hand, a later detaching by hand is not the relay's to finish.
    """
    await shrink(conn)
    for _ in range(15):
        await append(conn)
    await send_all(conn, mark=15)
    first = (await outbox_partitions.partitions(conn))[0]
    await outbox_partitions.detach(conn, first)
    await conn.execute("ALTER TABLE outbox ATTACH PARTITION outbox_from_1 FOR VALUES FROM (1) TO (11)")
    await look_after(settings(database_url, "1h"), RelayState())
    await conn.execute("ALTER TABLE outbox DETACH PARTITION outbox_from_1")

    await look_after(settings(database_url, "1h"), RelayState())

    assert "outbox_from_1" in await tables(conn)


async def test_upkeep_that_fails_ends_no_forwarding(
    conn: AsyncConnection, database_url: str, topology: str, start_relay: StartRelay
) -> None:
    """
    A partition detached by hand with a row that waits, and a table in the way of the next one: the relay goes on.
    """
    await shrink(conn)
    await append(conn)
    await conn.execute("ALTER TABLE outbox DETACH PARTITION outbox_from_1")
    await conn.execute("UPDATE outbox_from_1 SET state = 'parked' WHERE state = 'pending'")
    await conn.execute("INSERT INTO outbox_parked SELECT id, shard, key, exchange, routing_key FROM outbox_from_1")
    await conn.execute("SELECT setval('outbox_id_seq', 20)")
    await conn.execute("CREATE TABLE outbox_from_41 (in_the_way int)")
    relay = start_relay(upkeep_seconds=0.1, partitions_ahead=20)

    await append_many(conn, 5, keys=5)
    await eventually(lambda: _all_sent(conn), 20)

    async def has_failed() -> bool:
        return "partitions left for the next round" in relay.log.read_text()

    await eventually(has_failed, 20)
    await append_many(conn, 4, keys=4)
    await eventually(lambda: _all_sent(conn), 20)
    assert (await tables(conn))[0] == "outbox_from_1"


async def test_an_open_writer_keeps_its_row(conn: AsyncConnection, database_url: str) -> None:
    """
    A writer that is open across the upkeep holds the mark, and so its partition; its row is there when it commits.
    """
    await shrink(conn)
    async with await AsyncConnection.connect(database_url) as writer:
        late = await append(writer)
        for _ in range(14):
            await append(conn)
        await send_all(conn, mark=late - 1)
        await look_after(settings(database_url, "0"), RelayState())
        await writer.commit()

    assert await states(conn) == {"pending": 1, "sent": 14}


async def test_a_writer_is_open_while_partitions_go(
    conn: AsyncConnection, database_url: str, topology: str, start_relay: StartRelay
) -> None:
    """
    Partitions are made and dropped by a relay all the time; a writer that is open across it loses nothing, and its
    partition goes when its row was sent.
    """
    await shrink(conn)
    start_relay(retention="0", upkeep_seconds=0.1, partitions_ahead=2)
    await append_many(conn, 25, keys=5)

    async with await AsyncConnection.connect(database_url) as writer:
        await eventually(lambda: _lowest_above(conn, 20), 30)
        late = await append(writer, "late", LATE)
        for _ in range(6):
            # As writers do that find no partition: the relay's keeper may be waiting for the open writer.
            await conn.execute("SELECT outbox_add_partitions(2)")
            await append_many(conn, 10, keys=5)
            await becomes(True, lambda: _all_sent(conn), 30)
        assert (await lows(conn))[0] <= late
        await writer.commit()

    await eventually(lambda: _lowest_above(conn, late), 30)
    async with recording(topology) as recorder:
        await eventually(lambda: len(recorder.messages) == 25 + 1 + 60)
    assert recorder.bodies().count(LATE) == 1


async def _all_sent(conn: AsyncConnection) -> bool:
    return not await _unsettled(conn)


async def _unsettled(conn: AsyncConnection) -> int:
    row = await (await conn.execute("SELECT count(*) FROM outbox WHERE settled_at IS NULL")).fetchone()
    assert row is not None
    return int(row[0])


async def _lowest_above(conn: AsyncConnection, row_id: int) -> bool:
    return (await lows(conn))[0] > row_id


async def test_orders_are_taken_when_the_partitions_are_used_up(start_system: StartSystem) -> None:
    """
    With every relay down the partitions made ahead are used up, and orders are taken all the same; a relay that comes
    then sends them all.
    """
    system = start_system(apis=1, relays=0, workers=0, with_nginx=False)
    async with await AsyncConnection.connect(system.database_url, autocommit=True) as conn:
        await shrink(conn)
        ahead = len(await lows(conn)) * SMALL
        async with httpx.AsyncClient(base_url=system.api_urls[0], timeout=30, trust_env=False) as client:
            for _ in range(10):
                answers = await asyncio.gather(*(client.post("/order/place") for _ in range(10)))
                assert {answer.status_code for answer in answers} == {200}
        assert ahead < 100
        assert await states(conn) == {"pending": 100}

        relay = RelayProcess(system.database_url, system.amqp_url, system.folder).start()
        try:
            await becomes({"sent": 100}, lambda: states(conn), 30)
        finally:
            relay.kill()
