"""The claimers of one relay: more than one while there is a backlog, and one when there is none."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from psycopg import AsyncConnection

from relay import outbox_table
from relay.outbox_table import Present
from relay.parallel_claims import BACKLOG_SECONDS, BUSY_PAUSE_SECONDS, Claimer
from relay.state import RelayState
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


def claimer(*, is_first: bool = True) -> Claimer:
    return Claimer(asyncio.Event(), RelayState(), is_first=is_first)


def test_only_the_first_claimer_works_without_a_backlog() -> None:
    """
    The first claimer always has work; the others have while there is a backlog.
    """
    first, second = claimer(), claimer(is_first=False)
    assert first.has_work
    assert not second.has_work

    second.backlog.set()

    assert second.has_work


def test_a_backlog_is_over_when_no_claim_has_been_full_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A full claim calls the other claimers at once; the first claimer alone sends them away, and only after a while.
    """
    now = 100.0
    monkeypatch.setattr("relay.parallel_claims.time", SimpleNamespace(monotonic=lambda: now))
    first, second = claimer(), claimer(is_first=False)

    for each in (first, second):
        each.record(full=True)
        each.record(full=False)
        assert each.backlog.is_set()
    now += BACKLOG_SECONDS * 1.01
    for each in (first, second):
        each.found_nothing()

    assert not first.backlog.is_set()
    assert second.backlog.is_set()


async def test_a_share_of_the_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Each claimer takes its share, rounded up, and goes on behind it; others are counted once a second.
    """
    counts = iter([Present(relays=2, claimers=3), Present(relays=0, claimers=0)])

    async def count_present(_: Any) -> Present:
        return next(counts)

    monkeypatch.setattr(outbox_table, "count_present", count_present)
    conn = cast(Any, None)
    state = RelayState()
    one = Claimer(asyncio.Event(), state, is_first=True)
    assert one.share == outbox_table.SHARDS

    for now in (10.0, 10.5):
        await one.count_others(conn, now)
    first, limit = one.next_shards
    one.go_on()
    second, _ = one.next_shards
    assert state.relays == 2
    assert one.share == 22
    assert limit == 22
    assert second == (first + 22) % outbox_table.SHARDS
    await one.count_others(conn, 11.0)

    assert (state.relays, one.share) == (1, outbox_table.SHARDS)  # this relay itself always counts


def test_pauses() -> None:
    """
    No pause while a claim changed rows; after an empty one a short pause, doubled each time, if there are rows above
    the mark which others hold, and else the longest.
    """
    one = claimer()

    assert one.pause_after(5, more=True, above_mark=True, longest=0.25) == 0
    assert one.pause_after(5, more=False, above_mark=True, longest=0.25) == 0  # its rows may be there again at once
    pauses = [one.pause_after(0, more=False, above_mark=True, longest=0.25) for _ in range(20)]
    assert pauses[:3] == [BUSY_PAUSE_SECONDS * 2, BUSY_PAUSE_SECONDS * 4, BUSY_PAUSE_SECONDS * 8]
    assert pauses[-1] == 0.25
    assert one.pause_after(0, more=False, above_mark=False, longest=0.25) == 0.25

    one.found_nothing()

    assert one.pause_after(0, more=False, above_mark=True, longest=0.25) == BUSY_PAUSE_SECONDS * 2
