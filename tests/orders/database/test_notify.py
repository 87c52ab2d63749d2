"""Hints to the relay: the first leaves at once, and under load one serves many commits."""

from collections.abc import Sequence

import pytest
from psycopg import AsyncConnection

from orders.database.notify import MAX_PAUSE_SECONDS, RelayNotifier, pause_after
from tests.eventually import eventually


def test_hints_are_as_far_apart_as_there_is_to_carry() -> None:
    """
    An event on its own is soon followed by the next hint; a batch is not.
    """
    assert pause_after(1) < pause_after(3) < pause_after(100) == pause_after(1_000_000) == MAX_PAUSE_SECONDS


async def test_commits_that_come_together_are_one_hint(
    database_url: str, conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Who listens hears of each commit, but not once for each.
    """
    monkeypatch.setattr("orders.database.notify.pause_after", lambda rows: 0.0)
    heard: list[str] = []
    conn.add_notify_handler(lambda notify: heard.append(notify.channel))
    await conn.execute("LISTEN outbox")

    async def count() -> int:
        await conn.execute("SELECT 1")  # brings what was said
        return len(heard)

    async def has_heard_twice() -> bool:
        return await count() == 2

    async with RelayNotifier(database_url) as notifier:
        for _ in range(50):
            notifier.soon()
        assert await eventually(count) == 1

        notifier.soon(100)
        await eventually(has_heard_twice)

    assert heard == ["outbox", "outbox"]


async def test_a_batch_is_followed_by_a_hint(database_url: str, conn: AsyncConnection) -> None:
    """
    What a batch answers is not changed by the hint that follows it, and one that fails is followed by none.
    """
    heard: list[str] = []
    conn.add_notify_handler(lambda notify: heard.append(notify.channel))
    await conn.execute("LISTEN outbox")

    async def run(_: AsyncConnection, batch: Sequence[int]) -> Sequence[int]:
        return [100 // item for item in batch]

    async def has_heard() -> bool:
        await conn.execute("SELECT 1")
        return len(heard) == 1

    async with RelayNotifier(database_url) as notifier:
        with pytest.raises(ZeroDivisionError):
            await notifier.after(run)(conn, [0])
        assert notifier._rows == 0

        assert await notifier.after(run)(conn, [50, 25]) == [2, 4]
        await eventually(has_heard)


async def test_a_later_hint(database_url: str, conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A hint for rows that no order waits for is sent after a while, and not at all if the relay was at work meanwhile.
    """
    heard: list[str] = []
    conn.add_notify_handler(lambda notify: heard.append(notify.channel))
    await conn.execute("LISTEN outbox")

    async def has_heard() -> bool:
        await conn.execute("SELECT 1")
        return len(heard) == 1

    async with RelayNotifier(database_url) as notifier:
        monkeypatch.setattr("orders.database.notify.LATER_SECONDS", 3600.0)
        notifier.later()
        notifier.needless()
        monkeypatch.setattr("orders.database.notify.LATER_SECONDS", 0.001)
        notifier.later()
        notifier.later()
        await eventually(has_heard)
        assert not notifier._rows
