"""The clock of the retries: each worker looks, and whoever comes first sends a retry that is due."""

import asyncio
from collections.abc import Callable

import psycopg
from prometheus_client import Gauge
from psycopg import AsyncConnection

from orders.broker.topology import WORK_QUEUE
from orders.database import outbox_table, postgres
from orders.database.errors import ErrorClass, classify
from orders.database.retries_table import count, send_due
from orders.database.session import Session

WAITING = Gauge("orders_worker_retries_waiting", "Orders that wait for their retry, of all workers")

LOOK_SECONDS = 0.25
BATCH_ROWS = 200
CALL_SECONDS = 1.2

# Rows that are gone stay in the index while some old transaction may still see them, and a look from the beginning
# would walk over all of them each time. So most looks begin a minute ago, and only now and then one at the beginning.
RECENT_SECONDS = 60.0
ALL_SECONDS = 10 * 365 * 86400.0
SWEEP_SECONDS = 30.0
COUNT_SECONDS = 5.0


class DueRetries(Session):
    """Sends what is due; `waiting` counts what is not, of all workers."""

    def __init__(self, url: str, sent: Callable[[], None]) -> None:
        super().__init__("retries", url, self._look)
        self.sent = sent  # told when there is something new in the outbox
        self.waiting = 0

    async def _look(self, conn: AsyncConnection) -> None:
        try:
            await self._send_what_is_due(conn)
        except psycopg.Error as error:
            if classify(error) is not ErrorClass.PARTITION_MISSING:
                raise
            with postgres.deadline(conn, CALL_SECONDS):
                await outbox_table.add_partitions(conn)

    async def _send_what_is_due(self, conn: AsyncConnection) -> None:
        loop = asyncio.get_running_loop()
        swept_at = counted_at = float("-inf")
        while not self.stopping.is_set():
            within = window(loop.time() - swept_at)
            if within == ALL_SECONDS:
                swept_at = loop.time()
            sent = BATCH_ROWS
            while sent == BATCH_ROWS:
                with postgres.deadline(conn, CALL_SECONDS):
                    sent = await send_due(conn, WORK_QUEUE, BATCH_ROWS, within_seconds=within)
                if sent:
                    self.sent()
            if loop.time() - counted_at > COUNT_SECONDS:
                counted_at = loop.time()
                with postgres.deadline(conn, CALL_SECONDS):
                    self.waiting = await count(conn)
                WAITING.set(self.waiting)
            await self.pause(LOOK_SECONDS)


def window(since_sweep: float) -> float:
    """Decide how far back a look goes, so many seconds after the last one that went back to the beginning."""
    return ALL_SECONDS if since_sweep > SWEEP_SECONDS else RECENT_SECONDS
