"""A writer that stays open holds the low-water mark; what a claim costs then, and who is told of it."""

import uuid
from collections.abc import AsyncIterator
from typing import LiteralString

import pytest
from psycopg import AsyncConnection

from relay import outbox_table
from relay.database import Connection, connect
from relay.state import RelayState
from relay.stored_mark import StoredMark
from tests.relay.conftest import StartRelay
from tests.relay.service import all_settled, append, append_many, becomes, state_of

SENT_ROWS = 20_000

# Index pages and table pages that this transaction has read, in all partitions.
BLOCKS: LiteralString = """
    SELECT coalesce(sum(pg_stat_get_xact_blocks_fetched(oid)), 0)::bigint FROM pg_class WHERE relname LIKE 'outbox%'
"""


@pytest.fixture
async def own(conn: AsyncConnection, database_url: str) -> AsyncIterator[Connection]:
    """A session as a claimer has it."""
    async with await connect(database_url, "relay", outbox_table.SESSION) as session:
        # The test waits for others between two statements.
        await session.execute("SET idle_session_timeout = 0; SET statement_timeout = 0")
        yield session


async def send(conn: AsyncConnection, rows: int) -> None:
    """Write rows and mark them sent, so that each leaves a dead entry in the poll's index."""
    await append_many(conn, rows, keys=rows)
    await conn.execute("UPDATE outbox SET state = 'sent', settled_at = clock_timestamp() WHERE state = 'pending'")


async def loaded(own: Connection) -> StoredMark:
    """Return a mark as a relay has it that starts now."""
    mark = StoredMark(RelayState(), is_shown=True)
    mark.load(await outbox_table.read_mark(own))
    return mark


async def claim(own: Connection, mark: StoredMark) -> tuple[list[int], int]:
    """Claim once; return the ids, and how many blocks were read for it."""
    last_id = (await outbox_table.look(own)).last_id
    await outbox_table.begin_and_take(own, 0, outbox_table.SHARDS)
    [[before]] = await (await own.execute(BLOCKS)).fetchall()
    messages = await mark.claim(own, last_id, 500, 1 << 20)
    [[after]] = await (await own.execute(BLOCKS)).fetchall()
    await outbox_table.commit(own)
    return outbox_table.ids_of(messages), after - before


@pytest.mark.parametrize("is_prepared", [False, True], ids=["open", "prepared"])
async def test_a_held_mark(conn: AsyncConnection, database_url: str, own: Connection, is_prepared: bool) -> None:
    """
    While a writer or an orphaned prepared transaction holds the mark, a claim reads no dead entries of the rows that
    were sent above it, and when it has committed the next claim has its row, before a later one of its key.
    """
    async with await AsyncConnection.connect(database_url) as writer:
        late = await append(writer, "late")
        if is_prepared and await (await conn.execute("SHOW max_prepared_transactions")).fetchone() == ("0",):
            pytest.skip("this server prepares no transactions")
        if is_prepared:
            await writer.execute("PREPARE TRANSACTION 'orphan'")
        mark = await loaded(own)
        await mark.move(own, idle=True)
        _, before = await claim(own, mark)
        await send(conn, SENT_ROWS)
        while await mark.move(own, idle=True):
            pass

        fresh = [await append(conn, "fresh") for _ in range(10)]
        claimed, blocks = await claim(own, mark)
        assert claimed == fresh
        assert mark.id < late
        assert blocks < before + 100

        await (conn.execute("COMMIT PREPARED 'orphan'") if is_prepared else writer.commit())
    behind = await append(conn, "late")
    assert (await claim(own, mark))[0] == [late, *fresh, behind]
    await conn.execute("UPDATE outbox SET state = 'sent', settled_at = now() WHERE state = 'pending'")
    while await mark.move(own, idle=True):
        pass
    assert mark.id == behind


async def test_a_relay_that_starts_under_a_held_mark(
    conn: AsyncConnection, database_url: str, own: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    It passes the rows that were sent in windows, of which each statement reads one, and then claims what is unsent.
    """
    monkeypatch.setattr("relay.stored_mark.WINDOW_ROWS", 1000)
    async with await AsyncConnection.connect(database_url) as writer:
        await append(writer, "late")
        await send(conn, SENT_ROWS)
        fresh = await append(conn, "fresh")
        mark = await loaded(own)
        for limit in ("RISE_SECONDS", "LOOK_SECONDS"):
            monkeypatch.setattr(f"relay.stored_mark.{limit}", 0.0)
        await mark.move(own, idle=True)
        claimed, blocks = await claim(own, mark)
        assert claimed == []
        assert blocks < 1000

        monkeypatch.setattr("relay.stored_mark.RISE_SECONDS", 10.0)
        await mark.move(own, idle=True)
        assert (await claim(own, mark))[0] == [fresh]


async def test_a_locked_row_keeps_no_later_ones_from_their_claim(
    conn: AsyncConnection, database_url: str, own: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    While another session has locked a pending row, rows that lie more than a window behind it are claimed.
    """
    monkeypatch.setattr("relay.stored_mark.WINDOW_ROWS", 1000)
    async with await AsyncConnection.connect(database_url) as stranger:
        locked = await append(conn, "locked")
        await stranger.execute("SELECT FROM outbox WHERE id = %s FOR UPDATE", (locked,))
        await append_many(conn, 3000, keys=3000)
        await conn.execute("UPDATE outbox SET state = 'sent', settled_at = clock_timestamp() WHERE id > %s", (locked,))
        fresh = await append(conn, "fresh")
        mark = await loaded(own)
        await mark.move(own, idle=True)

        assert (await claim(own, mark))[0] == [fresh]


async def test_a_writer_that_has_ended_pulls_the_floor_to_its_beginning(
    conn: AsyncConnection, database_url: str, own: Connection
) -> None:
    """
    Of two writers that stay open the younger ends: the claim that follows reads what was sent since that one began.
    """
    async with (
        await AsyncConnection.connect(database_url) as old,
        await AsyncConnection.connect(database_url) as young,
    ):
        await append(old, "old")
        await send(conn, SENT_ROWS)
        mark = await loaded(own)
        await mark.move(own, idle=True)
        late = await append(young, "young")
        await mark.move(own, idle=True)
        await send(conn, 6000)
        while await mark.move(own, idle=True):
            pass
        await young.commit()

        claimed, blocks = await claim(own, mark)

    assert claimed == [late]
    assert blocks < 3000


async def test_the_relay_tells_who_holds_its_mark(
    conn: AsyncConnection, database_url: str, start_relay: StartRelay
) -> None:
    """
    Status and metrics of a running relay say how far its mark is behind, and which transaction holds it since when; the
    row is sent as soon as it is committed.
    """
    relay = start_relay()
    async with await AsyncConnection.connect(database_url, application_name="sleeper") as writer:
        late = await append(writer, f"late-{uuid.uuid4()}")
        await append_many(conn, 6000, keys=6000)
        await becomes(True, lambda: all_settled(conn), 30)

        async def holder() -> tuple[str, int, bool]:
            held = await relay.says("mark_held_by") or {}
            return held.get("name", ""), held.get("pid", 0), held.get("prepared", False)

        await becomes(("sleeper", writer.info.backend_pid, False), holder)
        assert await relay.says("mark_behind_rows") >= 6000
        assert await relay.metric("relay_mark_behind_rows") >= 6000
        assert await relay.metric("relay_mark_held_seconds") > 0
        await writer.commit()
    await becomes("sent", lambda: state_of(conn, late))
    await becomes(0, lambda: relay.says("mark_behind_rows"))
    await becomes(None, lambda: relay.says("mark_held_by"))
