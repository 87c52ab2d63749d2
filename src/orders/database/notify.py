"""Tell the relay that there is something to carry, after the commit and on a connection of its own.

A NOTIFY in the writing transaction would take a lock of the whole cluster until that commit is flushed, and leave a
third of the rate of commits. This one is only a hint: a lost one costs the relay's poll interval, nothing else.
"""

import asyncio
from collections.abc import Sequence
from typing import LiteralString, TypeVar

from psycopg import AsyncConnection

from orders.database import postgres
from orders.database.batcher import Run
from orders.database.session import Session
from orders.model.errors import OrdersError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

NOTIFY: LiteralString = "NOTIFY outbox"
# The first hint leaves at once. The next one waits for as long as what this one told of takes to carry, so that an
# event on its own is carried within some milliseconds, and under load one hint serves many commits.
SECONDS_PER_ROW = 0.005
MAX_PAUSE_SECONDS = 0.04
CALL_SECONDS = 1.0


class RelayNotifier(Session):
    """Sends the hints; `soon()` costs its caller nothing."""

    def __init__(self, url: str) -> None:
        super().__init__("notify", url, self._send_hints)
        self._has_rows = asyncio.Event()
        self._rows = 0

    def soon(self, rows: int = 1) -> None:
        """Send a hint, within some milliseconds, of so many rows that were committed."""
        self._rows += rows
        self._has_rows.set()

    def after(self, run: Run[Item, Answer]) -> Run[Item, Answer]:
        """Return `run`, followed by a hint for as many rows as its batch has."""

        async def run_and_notify(conn: AsyncConnection, batch: Sequence[Item]) -> Sequence[Answer | OrdersError]:
            answers = await run(conn, batch)
            self.soon(len(batch))
            return answers

        return run_and_notify

    async def __aexit__(self, *exc: object) -> None:
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
    """Decide how many seconds after a hint of so many rows the next one may leave."""
    return min(rows * SECONDS_PER_ROW, MAX_PAUSE_SECONDS)
