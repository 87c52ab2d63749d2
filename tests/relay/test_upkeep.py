"""Partitions: made ahead, dropped after their time, never with a row that is still to be sent."""

import asyncio

import httpx
from psycopg import AsyncConnection

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
