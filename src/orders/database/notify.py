"""Notify the relay of new outbox rows, after the commit and on a separate connection.

A NOTIFY in the writing transaction takes a lock of the whole cluster until that commit is flushed; it reduces the rate
of commits to a third. A notification is only a hint: a lost one delays a row by the relay's poll interval, no more.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import LiteralString, TypeVar

from psycopg import AsyncConnection

from orders.database import postgres
from orders.database.batcher import Run
from orders.database.row_locks import Busy
from orders.database.session import Session
from orders.model.errors import OrdersError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

NOTIFY: LiteralString = "NOTIFY outbox"
# The first hint is sent at once. The next one waits until the rows of this one are probably published: a lone event is
# published within some milliseconds, and under load one hint serves many commits.
SECONDS_PER_ROW = 0.005
MAX_PAUSE_SECONDS = 0.04
CALL_SECONDS = 1.0
LATER_SECONDS = 0.1


class RelayNotifier(Session):
    """Sends the hints; `soon()` costs a caller nothing."""

    def __init__(self, url: str) -> None:
        super().__init__("notify", url, self._send_hints)
        self._has_rows = asyncio.Event()
        self._rows = 0
        self._later: asyncio.TimerHandle | None = None

    def soon(self, rows: int = 1) -> None:
        """Have a hint sent within some milliseconds, for `rows` rows that are committed."""
        self._rows += rows
        self._has_rows.set()

    def later(self, rows: int = 1) -> None:
        """Have a hint sent after LATER_SECONDS, for committed rows that no order waits for, unless it is `needless`."""
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(LATER_SECONDS, self._send_late)

    def needless(self) -> None:
        """Call this when the relay has just carried another row: it takes those of `later` along, now or next time."""
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def _send_late(self) -> None:
        self._later = None
        self.soon()

    def after(self, run: Run[Item, Answer], hint: Callable[[int], None] | None = None) -> Run[Item, Answer]:
        """Return `run`, followed by a hint (`soon`, or `later`) for as many rows as its batch has."""
        hint = hint or self.soon

        async def run_and_notify(conn: AsyncConnection, batch: Sequence[Item]) -> Sequence[Answer | OrdersError | Busy]:
            answers = await run(conn, batch)
            hint(len(batch))
            return answers

        return run_and_notify

    async def __aexit__(self, *exc: object) -> None:
        self.needless()
        self._has_rows.set()
        await super().__aexit__(*exc)

    async def _send_hints(self, conn: AsyncConnection) -> None:
        while not self.stopping.is_set():
            await self._has_rows.wait()
            self._has_rows.clear()
            rows, self._rows = self._rows, 0
            with postgres.deadline(conn, CALL_SECONDS):
                await conn.execute(NOTIFY)
            await self.pause(pause_after(rows))


def pause_after(rows: int) -> float:
    """Decide how many seconds after a hint for `rows` rows the next one may be sent."""
    return min(rows * SECONDS_PER_ROW, MAX_PAUSE_SECONDS)
