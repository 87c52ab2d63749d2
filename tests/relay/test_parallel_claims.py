"""The claimers of one relay: more than one while there is a backlog, and one when there is none."""

from psycopg import AsyncConnection

from tests.eventually import eventually
from tests.relay.conftest import StartRelay
from tests.relay.service import all_settled, append_many, becomes, keys_by_event, recording

ROWS = 6000


async def claimers(conn: AsyncConnection) -> int:
    """Return how many sessions claim."""
    cursor = await conn.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'relay'"
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def test_claimers_come_and_go(conn: AsyncConnection, topology: str, start_relay: StartRelay) -> None:
    """
    A backlog is carried by two claimers, in order for each key; when it is gone the second one leaves its connections.
    """
    relay = start_relay(batch_rows=20)
    await relay.ready()
    await becomes(1, lambda: claimers(conn))

    async with recording(topology) as recorder:
        await append_many(conn, ROWS, keys=60)
        await becomes(2, lambda: claimers(conn))
        await eventually(lambda: len(recorder.messages) >= ROWS, 60)
    await becomes(True, lambda: all_settled(conn))
    await becomes(1, lambda: claimers(conn))

    arrived = recorder.numbers(await keys_by_event(conn))
    assert all(numbers == list(range(ROWS // 60)) for numbers in arrived.values())
    assert await relay.says("relays") == 1


async def test_one_claimer(conn: AsyncConnection, start_relay: StartRelay) -> None:
    """
    With RELAY_LANES=1 a backlog is carried by one session alone.
    """
    relay = start_relay(batch_rows=20, lanes=1)
    await relay.ready()
    seen = []

    async def settled() -> bool:
        seen.append(await claimers(conn))
        return await all_settled(conn)

    await append_many(conn, ROWS, keys=60)
    await becomes(True, settled, 60)

    assert max(seen) == 1
