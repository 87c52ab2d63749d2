"""The clock of the retries: every worker polls for retries that are due, and sends them. The rows are locked, so each
is sent once.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import psycopg
from prometheus_client import Gauge
from psycopg import AsyncConnection

from orders.broker.topology import WORK_QUEUE
from orders.database import outbox_table, postgres
from orders.database.errors import ErrorClass, classify
from orders.database.retries_table import PUT_OFF_SECONDS, Due, count, send_due, send_overdue
from orders.database.row_locks import Busy, LockedOrders
from orders.database.session import Session

WAITING = Gauge("orders_worker_retries_waiting", "Orders that wait for their retry, of all workers")

POLL_SECONDS = 0.25
BATCH_ROWS = 200
CALL_SECONDS = 1.2

# Deleted rows stay in the index while an old transaction may still see them, and a scan from the beginning reads all of
# them. Polls therefore begin some seconds ago. Retries that have been due for longer, as after an outage, are found
# where they lie: slice by slice the whole table is looked at, and counted.
RECENT_SECONDS = 30.0
SLICE_PAGES = 2000
ROUND_SECONDS = 5.0  # between two rounds through the table


class DueRetries(Session):
    """Sends the retries that are due; `waiting` is the number of those that are not, of all workers."""

    def __init__(self, url: str, notify: Callable[[], None]) -> None:
        """`notify` is called after each commit that added rows to the outbox."""
        super().__init__("retries", url, self._run_clock)
        self.notify = notify
        self.waiting = 0
        self.locked = LockedOrders("retries")

    async def _run_clock(self, conn: AsyncConnection) -> None:
        try:
            await self._send_due_retries(conn)
        except psycopg.Error as error:
            if classify(error) is not ErrorClass.PARTITION_MISSING:
                raise
            with postgres.deadline(conn, CALL_SECONDS):
                await outbox_table.add_partitions(conn)

    async def _send_due_retries(self, conn: AsyncConnection) -> None:
        loop = asyncio.get_running_loop()
        page, rows, round_at = 0, 0, loop.time()
        while not self.stopping.is_set():
            await self._send_all(conn, partial(send_due, within_seconds=RECENT_SECONDS))
            if loop.time() >= round_at:
                with postgres.deadline(conn, CALL_SECONDS):
                    found = await count(conn, after_seconds=RECENT_SECONDS, page=page, pages=SLICE_PAGES)
                if found.overdue:
                    of_slice = partial(send_overdue, after_seconds=RECENT_SECONDS, page=page, pages=SLICE_PAGES)
                    await self._send_all(conn, of_slice)
                page, rows = page + SLICE_PAGES, rows + found.rows
                if page >= found.pages:
                    self.waiting = rows
                    WAITING.set(self.waiting)
                    page, rows, round_at = 0, 0, loop.time() + ROUND_SECONDS
            self.locked.end_after(3 * PUT_OFF_SECONDS)
            await self.pause(POLL_SECONDS)

    async def _send_all(
        self, conn: AsyncConnection, send: Callable[[AsyncConnection, str, int], Awaitable[Due]]
    ) -> None:
        """Send batch after batch, until one is not full."""
        found = BATCH_ROWS
        while found == BATCH_ROWS:
            with postgres.deadline(conn, CALL_SECONDS):
                due = await send(conn, WORK_QUEUE, BATCH_ROWS)
            found = due.sent + len(due.locked)
            for order_id in due.locked:
                self.locked.pause(order_id, Busy(order_id))
            if due.sent:
                self.notify()
