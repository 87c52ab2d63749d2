"""When the low-water mark is loaded, moved and saved; what moves it is in test_mark.py."""

import contextlib
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay import outbox_table, stored_mark
from relay.database import DatabaseLost
from relay.outbox_table import Look, SavedMark
from relay.state import RelayState
from relay.stored_mark import MOVE_SECONDS, SAVE_SECONDS, SOON_ROWS, SOON_SECONDS, StoredMark

CONN = cast(Any, object())


class Table:
    """The statements of the mark, without a server: nobody writes, and all rows are settled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.last_id = 50
        self.looks = 0
        self.saved: list[int] = []
        self.is_lost = False
        for name in ("look", "writers", "lowest_pending", "save_mark"):
            monkeypatch.setattr(outbox_table, name, getattr(self, name))
        monkeypatch.setattr(stored_mark, "deadline", lambda *_: contextlib.nullcontext())

    async def look(self, _: Any) -> Look:
        self.looks += 1
        return Look(self.last_id, last_turn=0, database_time=0.0)

    async def writers(self, _: Any) -> list[str]:
        return []

    async def lowest_pending(self, *_: Any) -> None:
        return None

    async def save_mark(self, _: Any, mark: int) -> None:
        if self.is_lost:
            raise DatabaseLost("gone")
        self.saved.append(mark)


@pytest.mark.parametrize(("saved", "id_"), [(SavedMark(40, 1, 50), 40), (SavedMark(60, 1, 50), 0)])
def test_loading(saved: SavedMark, id_: int) -> None:
    """
    It begins at the persisted mark; one above the sequence is worth nothing.
    """
    state = RelayState()
    mark = StoredMark(state, is_shown=True)

    mark.load(saved)

    assert (mark.id, state.mark) == (id_, id_)


async def test_moving(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    While there is work it moves once a second, ten times after many rows, and at once when there is none; one mark of
    a relay is shown.
    """
    table, state = Table(monkeypatch), RelayState()
    now = 100.0
    monkeypatch.setattr("relay.stored_mark.time", SimpleNamespace(monotonic=lambda: now))
    mark = StoredMark(state, is_shown=False)
    mark.load(SavedMark(40, 1, 50))

    await mark.move(CONN, idle=False)
    await mark.move(CONN, idle=False)
    assert (table.looks, mark.id) == (1, 50)
    table.last_id = 60
    await mark.move(CONN, idle=True)
    assert (table.looks, mark.id) == (2, 60)
    now += MOVE_SECONDS
    await mark.move(CONN, idle=False)

    assert table.looks == 3
    now += SOON_SECONDS
    await mark.move(CONN, idle=False, rows=SOON_ROWS - 1)
    assert table.looks == 3
    await mark.move(CONN, idle=False, rows=1)
    await mark.move(CONN, idle=False, rows=SOON_ROWS)

    assert table.looks == 4
    assert state.mark == 0


async def test_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    It is saved rarely, only if it has moved, and again if the connection was lost meanwhile.
    """
    table = Table(monkeypatch)
    mark = StoredMark(RelayState(), is_shown=True)
    mark.load(SavedMark(40, 1, 50))
    await mark.save_if_due(CONN, 100.0)
    await mark.move(CONN, idle=True)
    assert table.saved == []

    await mark.save_if_due(CONN, 100.0 + SAVE_SECONDS / 2)
    await mark.save(None)
    assert table.saved == []
    table.is_lost = True
    await mark.save_if_due(CONN, 100.0 + SAVE_SECONDS)
    table.is_lost = False
    for later in (2, 3):
        await mark.save_if_due(CONN, 100.0 + SAVE_SECONDS * later)

    assert table.saved == [50]
