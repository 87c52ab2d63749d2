"""The clock of the retries: each worker looks, and whoever comes first sends a retry that is due."""

import asyncio
import logging
from collections.abc import Callable

import psycopg
from prometheus_client import Gauge
from psycopg import AsyncConnection

from orders import database, outbox_table
from orders.backoff import backoff
from orders.batching import Verdict, first_line, judge
from orders.postpone_orders import count, send_due
from orders.topology import WORK_QUEUE

log = logging.getLogger(__name__)

WAITING = Gauge("orders_worker_retries_waiting", "Orders that wait for their retry, of all workers")

LOOK_SECONDS = 0.1
BATCH_ROWS = 200
CALL_SECONDS = 1.2

# Rows that are gone stay in the index while some old transaction may still see them, and a look from the beginning
# would walk over all of them each time. So most looks begin a minute ago, and only now and then one at the beginning.
RECENT_SECONDS = 60.0
ALL_SECONDS = 10 * 365 * 86400.0
SWEEP_SECONDS = 30.0
COUNT_SECONDS = 5.0


class Retries:
    """Owns the connection and the task that looks."""

    def __init__(self, url: str, sent: Callable[[], None]) -> None:
        self.url = url
        self.sent = sent  # told when there is something new in the outbox
        self.waiting = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Retries":
        self._task = asyncio.create_task(self._run(), name="retries")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pauses = backoff()
        while True:
            conn: AsyncConnection | None = None
            try:
                conn = await database.connect(self.url, "orders-retries")
                pauses = backoff()
                await self._look(conn)
            except psycopg.Error as error:
                log.warning("retries: %s", first_line(error))
                if conn is not None and judge(error) is Verdict.PARTITION_MISSING:
                    await outbox_table.add_partitions(conn)
            finally:
                await database.close(conn)
            await asyncio.sleep(next(pauses))

    async def _look(self, conn: AsyncConnection) -> None:
        loop = asyncio.get_running_loop()
        swept_at = counted_at = float("-inf")
        while True:
            within = RECENT_SECONDS
            if loop.time() - swept_at > SWEEP_SECONDS:
                within, swept_at = ALL_SECONDS, loop.time()
            sent = BATCH_ROWS
            while sent == BATCH_ROWS:
                with database.deadline(conn, CALL_SECONDS):
                    sent = await send_due(conn, WORK_QUEUE, BATCH_ROWS, within_seconds=within)
                if sent:
                    self.sent()
            if loop.time() - counted_at > COUNT_SECONDS:
                counted_at = loop.time()
                with database.deadline(conn, CALL_SECONDS):
                    self.waiting = await count(conn)
                WAITING.set(self.waiting)
            await asyncio.sleep(LOOK_SECONDS)
