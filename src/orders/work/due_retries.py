"""The clock of the retries: every worker polls for retries that are due, and sends them. The rows are locked, so each
is sent once.
"""

import asyncio
from collections.abc import Callable

import psycopg
from prometheus_client import Gauge
from psycopg import AsyncConnection

from orders.broker.topology import WORK_QUEUE
from orders.database import outbox_table, postgres
from orders.database.errors import ErrorClass, classify
from orders.database.retries_table import PUT_OFF_SECONDS, count, send_due
from orders.database.row_locks import Busy, LockedOrders
from orders.database.session import Session

WAITING = Gauge("orders_worker_retries_waiting", "Orders that wait for their retry, of all workers")

POLL_SECONDS = 0.25
BATCH_ROWS = 200
CALL_SECONDS = 1.2

# Deleted rows stay in the index while an old transaction may still see them, and a scan from the beginning reads all of
# them. Most polls therefore begin a minute ago; every SWEEP_SECONDS one begins at the beginning.
RECENT_SECONDS = 60.0
ALL_SECONDS = 10 * 365 * 86400.0
SWEEP_SECONDS = 30.0
COUNT_SECONDS = 5.0


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
        swept_at = counted_at = float("-inf")
        while not self.stopping.is_set():
            within_seconds = window_seconds(loop.time() - swept_at)
            if within_seconds == ALL_SECONDS:
                swept_at = loop.time()
            found = BATCH_ROWS
            while found == BATCH_ROWS:
                with postgres.deadline(conn, CALL_SECONDS):
                    due = await send_due(conn, WORK_QUEUE, BATCH_ROWS, within_seconds=within_seconds)
                found = due.sent + len(due.locked)
                for order_id in due.locked:
                    self.locked.pause(order_id, Busy(order_id))
                if due.sent:
                    self.notify()
            self.locked.end_after(3 * PUT_OFF_SECONDS)
            if loop.time() - counted_at > COUNT_SECONDS:
                counted_at = loop.time()
                with postgres.deadline(conn, CALL_SECONDS):
                    self.waiting = await count(conn)
                WAITING.set(self.waiting)
            await self.pause(POLL_SECONDS)


def window_seconds(since_sweep_seconds: float) -> float:
    """Decide how many seconds back a poll goes, by the time since the last sweep from the beginning."""
    return ALL_SECONDS if since_sweep_seconds > SWEEP_SECONDS else RECENT_SECONDS
