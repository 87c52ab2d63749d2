"""What the relay's looks cost while an old snapshot is open: rows that have gone stay in the indexes and tables."""

from collections.abc import AsyncIterator
from typing import LiteralString

import pytest
from psycopg import AsyncConnection

from relay import outbox_table
from relay.database import Connection, connect
from relay.message import Route
from relay.outbox_table import WaitingCount
from relay.route_health import RouteHealth
from relay.routes import Routes
from relay.state import RelayState
from tests.relay.messages import make_message
from tests.relay.service import append, append_many

SHARDS = list(range(64))
KEYS = 5000
ROUTE = Route("orders", "order.placed")

# Index pages and table pages that this transaction has read.
BLOCKS: LiteralString = """
    SELECT coalesce(sum(pg_stat_get_xact_blocks_fetched(oid)), 0)::bigint FROM pg_class WHERE relname LIKE 'outbox%'
"""


@pytest.fixture
async def own(conn: AsyncConnection, database_url: str) -> AsyncIterator[Connection]:
    """A session as a claimer has it, while another one holds the horizon."""
    async with (
        await AsyncConnection.connect(database_url) as holder,
        await connect(database_url, "relay", outbox_table.SESSION) as session,
    ):
        await holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await holder.execute("SELECT count(*) FROM outbox")
        await session.execute("SET idle_session_timeout = 0; SET statement_timeout = 0")
        yield session


async def park(conn: Connection, own: Connection, keys: int) -> list[int]:
    """Write a row for each of so many keys, and park them; return the ids."""
    await append_many(conn, keys, keys=keys)
    rows = await (await conn.execute("SELECT id FROM outbox WHERE state = 'pending' ORDER BY id")).fetchall()
    ids = [row[0] for row in rows]
    await outbox_table.park(own, ids, "its queue is full")
    return ids


async def let_go(own: Connection, ids: list[int]) -> None:
    """Send these parked rows, and let their keys go."""
    cursor = await own.execute("SELECT id, key FROM outbox WHERE id = ANY (%s)", [ids])
    messages = [make_message(row_id, key, parked=True) for row_id, key in await cursor.fetchall()]
    await outbox_table.settle(own, ids, [], and_commit=False)
    await outbox_table.remove_parked(own, messages)


async def look(own: Connection, routes: Routes) -> tuple[list[int], int]:
    """Look for parked rows as a claimer does; return the ids, and how many blocks were read for them."""
    async with own.transaction():
        [[before]] = await (await own.execute(BLOCKS)).fetchall()
        found = await outbox_table.look(own)
        messages = []
        if routes.any_waiting(found.last_turn):
            allowance = await routes.allowance(own, found.last_turn, 500)
            messages = await outbox_table.claim_parked(own, SHARDS, *allowance, 100, 500, 1 << 20)
        [[after]] = await (await own.execute(BLOCKS)).fetchall()
    return outbox_table.ids_of(messages), after - before


async def test_keys_that_have_gone_cost_nothing(conn: AsyncConnection, own: Connection) -> None:
    """
    After thousands of keys have waited and gone, a look for waiting keys reads no more than before, also when one
    waits.
    """
    routes = Routes(RouteHealth(2.0), RelayState())
    _, nothing = await look(own, routes)
    one = await park(conn, own, 1)
    assert (found := await look(own, routes))[0] == one
    await let_go(own, one)
    many = await park(conn, own, KEYS)
    assert len((await look(own, routes))[0]) == 500
    await let_go(own, many)
    await look(own, routes)

    assert (await look(own, routes))[0] == []
    assert (await look(own, routes))[1] <= nothing + 10
    last = await park(conn, own, 1)
    again = await look(own, routes)
    assert again[0] == last
    assert again[1] <= found[1] + 50


async def test_rows_of_a_key_that_have_gone_cost_nothing(conn: AsyncConnection, own: Connection) -> None:
    """
    A key of which thousands of rows have been parked and sent is claimed from its head on.
    """
    routes = Routes(RouteHealth(2.0), RelayState())
    await append_many(conn, KEYS, keys=1)
    ids = [row[0] for row in await (await conn.execute("SELECT id FROM outbox ORDER BY id")).fetchall()]
    await outbox_table.park(own, ids, "its key waits")
    first, before = await look(own, routes)
    assert first == ids[:100]
    await let_go(own, ids[:-100])
    await look(own, routes)

    rest, after = await look(own, routes)
    assert rest == ids[-100:]
    assert after <= before + 50


async def test_what_waits_is_counted_by_slices(
    conn: AsyncConnection, own: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A count reads a slice of the tables, however many rows have gone, and after all slices it is exact.
    """
    gone = await park(conn, own, KEYS)
    await let_go(own, gone)
    waiting = await park(conn, own, 3)
    await outbox_table.block(own, {"key-1": "rejected"})

    total, page, pages, costs = WaitingCount(0, 0, None), 0, 1, []
    while page < pages:
        async with own.transaction():
            [[before]] = await (await own.execute(BLOCKS)).fetchall()
            count, pages = await outbox_table.count_waiting(own, page, 10)
            [[after]] = await (await own.execute(BLOCKS)).fetchall()
        total, page = total.plus(count), page + 10
        costs.append(after - before)

    assert total == WaitingCount(3, 1, waiting[0])
    assert len(costs) > 3
    assert max(costs) <= 40


async def test_a_key_that_an_operator_frees_is_seen(conn: AsyncConnection, own: Connection) -> None:
    """
    A key that was blocked long ago and is freed takes a new turn: a relay that has seen all turns finds it.
    """
    routes = Routes(RouteHealth(2.0), RelayState())
    row = await append(conn, "old")
    await outbox_table.park(own, [row], "its queue is full")
    await outbox_table.block(own, {"old": "rejected"})
    await let_go(own, await park(conn, own, 10))
    await look(own, routes)
    assert not routes.any_waiting((await outbox_table.look(own)).last_turn)

    await conn.execute("UPDATE outbox_waiting SET blocked = false")
    assert (await look(own, routes))[0] == [row]
