"""The low-water mark of one claimer: loaded at its start, moved after its claims, and saved now and then."""

import contextlib
import time

from relay import outbox_table
from relay.database import STATEMENT_SECONDS, Connection, DatabaseLost, deadline
from relay.mark import LowWaterMark
from relay.outbox_table import SavedMark
from relay.state import RelayState

MOVE_SECONDS = 0.1  # between two moves while there is work
SAVE_SECONDS = 2.0  # between two saves


class StoredMark:
    """The mark that this claimer claims above."""

    def __init__(self, state: RelayState, *, is_shown: bool) -> None:
        """Start at 0; with `is_shown`, the relay's state shows this mark."""
        self._state = state
        self._is_shown = is_shown
        self._mark = LowWaterMark(0)
        self._saved = 0
        self._move_at = 0.0
        self._save_at = 0.0

    @property
    def id(self) -> int:
        """No row with this id or a lower one is pending, nor will ever be."""
        return self._mark.mark

    def load(self, saved: SavedMark) -> None:
        """Begin at the persisted mark.

        Not at the one in memory: a crash of the server undoes what was settled asynchronously. A mark above the
        sequence means that the sequence was set back, so it is worth nothing.
        """
        self._mark = LowWaterMark(saved.mark if saved.mark <= saved.last_id else 0)
        self._saved = saved.mark
        self._show()

    async def move(self, conn: Connection, *, idle: bool) -> None:
        """Let the mark follow what is settled, at most every `MOVE_SECONDS` unless `idle`; raises DatabaseLost.

        Each step is a statement of its own, in this order: mark.py says why.
        """
        now = time.monotonic()
        if not idle and now < self._move_at:
            return
        self._move_at = now + MOVE_SECONDS
        mark = self._mark
        with deadline(conn, STATEMENT_SECONDS):
            look = await outbox_table.look(conn)
            mark.observe(look.last_id, await outbox_table.writers(conn))
            if mark.settled > mark.mark:
                mark.advance(await outbox_table.lowest_pending(conn, mark.mark, mark.settled))
        self._show()

    async def save_if_due(self, conn: Connection | None, now: float) -> None:
        """Save at most every `SAVE_SECONDS`: each UPDATE of the one small row leaves a dead version behind."""
        if now >= self._save_at:
            self._save_at = now + SAVE_SECONDS
            await self.save(conn)

    async def save(self, conn: Connection | None) -> None:
        """Persist the mark if it has moved; without a connection, or if that is lost, leave it for the next time."""
        if conn is None or self._mark.mark <= self._saved:
            return
        with contextlib.suppress(DatabaseLost), deadline(conn, STATEMENT_SECONDS):
            await outbox_table.save_mark(conn, self._mark.mark)
            self._saved = self._mark.mark

    def _show(self) -> None:
        if self._is_shown:
            self._state.mark = self._mark.mark
