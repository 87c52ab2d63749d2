"""The low-water mark of one claimer and the floor of its claims: loaded, moved after its claims, and saved."""

import contextlib
import time

from relay import outbox_table
from relay.database import STATEMENT_SECONDS, Connection, DatabaseLost, deadline
from relay.mark import Floor, LowWaterMark
from relay.message import Message
from relay.outbox_table import SavedMark
from relay.state import RelayState

MOVE_SECONDS = 0.1  # between two moves while there is work
SAVE_SECONDS = 2.0  # between two saves
# Above a mark that was held for long lies a dead entry of the index for each row sent: one statement reads so many ids.
WINDOW_ROWS = 50_000
RISE_SECONDS = 0.5  # of one move
LOOK_SECONDS = 0.5  # of one claim that finds nothing


class StoredMark:
    """The mark that this claimer saves, and the floor that it claims above."""

    def __init__(self, state: RelayState, *, is_shown: bool) -> None:
        """Start at 0; with `is_shown`, the relay's state shows this mark."""
        self._state = state
        self._is_shown = is_shown
        self._mark = LowWaterMark(0)
        self._floor = Floor(0)
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
        self._floor = Floor(self._mark.mark)
        self._saved = saved.mark
        self._show()

    async def claim(self, conn: Connection, shards: list[int], upto: int, rows: int, size: int) -> list[Message]:
        """Claim pending rows with ids above the floor and up to `upto`, as `outbox_table.claim` does.

        It returns the first that it finds, window by window, and none if it finds none within `LOOK_SECONDS`.
        """
        floor, above, until = self._floor, self._floor.id, time.monotonic() + LOOK_SECONDS
        while True:
            end = min(upto, above + WINDOW_ROWS)
            found = await outbox_table.claim(conn, shards, above, end, rows, size)
            # A row below the floor would have to go before these, if it is of the same key.
            if floor.fence and floor.only_open(await outbox_table.still_open(conn, floor.fence)):
                above = floor.id
            elif found or end == upto or time.monotonic() >= until:
                return found
            else:
                above = end  # what is pending up to here is locked, or of shards that others hold

    async def move(self, conn: Connection, *, idle: bool) -> bool:
        """Let mark and floor follow what is settled, at most every `MOVE_SECONDS` unless `idle`; raises DatabaseLost.

        Return whether the floor has still to rise. Each step is a statement of its own, in this order (mark.py).
        """
        now = time.monotonic()
        if not idle and now < self._move_at:
            return False
        self._move_at = now + MOVE_SECONDS
        mark, floor = self._mark, self._floor
        with deadline(conn, STATEMENT_SECONDS):
            look = await outbox_table.look(conn)
            writers = await outbox_table.writers(conn)
        mark.observe(look.last_id, [writer.name for writer in writers])
        floor.observe(look.last_id, writers)
        lowest: int | None = None
        while lowest is None and floor.id < floor.reach and time.monotonic() < now + RISE_SECONDS:
            upto = min(floor.reach, floor.id + WINDOW_ROWS)
            with deadline(conn, STATEMENT_SECONDS):
                lowest = await outbox_table.lowest_pending(conn, floor.id, upto)
            floor.rise(lowest, upto)
        mark.advance(floor.id + 1)
        self._show()
        return lowest is None and floor.id < floor.reach

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
            self._state.mark, self._state.floor = self._mark.mark, self._floor.id
            self._state.mark_held_by_xid = min(self._floor.fence, key=self._floor.fence.__getitem__, default=None)
