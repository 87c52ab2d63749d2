"""The low-water mark of one claimer and the floor of its claims: loaded, moved after its claims, and saved."""

import contextlib
import time

from relay import outbox_table
from relay.database import STATEMENT_SECONDS, Connection, DatabaseLost, deadline
from relay.mark import Floor, LowWaterMark
from relay.message import Message
from relay.outbox_table import SavedMark
from relay.state import RelayState

# Between two moves while there is work; the second after so many rows, since a claim reads a dead entry of the index
# for each row sent above the floor.
MOVE_SECONDS, SOON_SECONDS, SOON_ROWS = 1.0, 0.1, 500
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
        self._moved_at = 0.0
        self._rows = 0  # claimed since the last move
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

    def window(self, upto: int) -> tuple[int, int]:
        """Return the bounds of the first look for pending rows (`above`, `upto`) in a claim up to `upto`."""
        return self._floor.id, min(upto, self._floor.id + WINDOW_ROWS)

    async def claim(self, conn: Connection, upto: int, rows: int, size: int) -> list[Message]:
        """Claim pending rows with ids above the floor and up to `upto`, as `outbox_table.claim` does.

        It returns the first that it finds, window by window, and none if it finds none within `LOOK_SECONDS`.
        """
        window = self.window(upto)
        found = await outbox_table.claim(conn, *window, rows, size)
        return await self.go_on(conn, found, window, upto, rows, size)

    async def go_on(
        self, conn: Connection, found: list[Message], window: tuple[int, int], upto: int, rows: int, size: int
    ) -> list[Message]:
        """Go on with a claim that has `found` these in its first window."""
        floor, (above, end), until = self._floor, window, time.monotonic() + LOOK_SECONDS
        while True:
            # A row below the floor would have to go before these, if it is of the same key.
            if floor.fence and floor.only_open(await outbox_table.still_open(conn, floor.fence)):
                above = floor.id
            elif found or end == upto or time.monotonic() >= until:
                return found
            else:
                above = end  # what is pending up to here is locked, or of shards that others hold
            end = min(upto, above + WINDOW_ROWS)
            found = await outbox_table.claim(conn, above, end, rows, size)

    async def move(self, conn: Connection, *, idle: bool, rows: int = 0) -> bool:
        """Let mark and floor follow what is settled; raises DatabaseLost.

        Do it every `MOVE_SECONDS`, sooner after many rows (`rows`: of the last claim), and whenever `idle`.
        Return whether the floor has still to rise. Each step is a statement of its own, in this order (mark.py).
        """
        now = time.monotonic()
        self._rows += rows
        if not idle and now < self._moved_at + (SOON_SECONDS if self._rows >= SOON_ROWS else MOVE_SECONDS):
            return False
        self._moved_at, self._rows = now, 0
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
