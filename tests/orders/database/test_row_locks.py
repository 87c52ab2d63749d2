"""When a batch skips locked rows, and how an order that waits for its row is told of."""

import logging
import time
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest

from orders.database import row_locks
from orders.database.row_locks import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Busy, LockedOrders, SkipLocked

ORDER = UUID(int=1)


class Table:
    """A table in which a row may be locked; it notes in which way each batch ran."""

    def __init__(self) -> None:
        self.is_locked = False
        self.skipped: list[bool] = []

    async def run(self, _conn: object, batch: Sequence[int], skip_locked: bool) -> list[int | Busy]:
        self.skipped.append(skip_locked)
        if not self.is_locked:
            return list(batch)
        if not skip_locked:
            raise psycopg.errors.LockNotAvailable
        return [Busy(ORDER), *batch[1:]]


async def test_a_batch_skips_only_after_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The cheap statement runs until it meets a lock; then batches skip, for a while after the last locked row.
    """
    table = Table()
    run = SkipLocked(table.run)
    conn = cast(Any, None)

    assert await run(conn, [1, 2]) == [1, 2]
    assert table.skipped == [False]
    table.is_locked = True
    assert await run(conn, [1, 2]) == [Busy(ORDER), 2]
    assert await run(conn, [1, 2]) == [Busy(ORDER), 2]
    assert table.skipped == [False, False, True, True]
    table.is_locked = False
    assert await run(conn, [1, 2]) == [1, 2]
    assert table.skipped[4:] == [True]

    monkeypatch.setattr(row_locks, "SKIP_SECONDS", -1.0)
    table.is_locked = True
    await run(conn, [1, 2])
    table.is_locked = False
    await run(conn, [1, 2])
    assert table.skipped[5:] == [True, False]


def test_a_locked_order_is_named_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """
    Pauses grow up to a limit. The log names an order once, however many wait for it, and says when it is free.
    """
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    caplog.set_level(logging.INFO)
    locked = LockedOrders("test")

    pauses = []
    for _ in range(10):
        pauses.append(locked.pause("one", Busy(ORDER)))
        locked.pause("two", Busy(ORDER))
        now += pauses[-1]
    assert pauses[0] == FIRST_PAUSE_SECONDS
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    assert len(locked) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(ORDER) in caplog.text

    locked.end("one")
    locked.end("one")
    assert len(locked) == 1
    locked.end_after(60)
    assert len(locked) == 1
    now += 61
    locked.end_after(60)
    assert len(locked) == 0
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
