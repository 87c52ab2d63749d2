"""How others see that a worker is alive: an advisory lock that its connection holds, and that vanishes with it.

A worker that is stopped asks nothing, and the server ends its session after 3 s: then its orders may be taken over.
"""

import asyncio
import logging
import secrets
from typing import LiteralString

import psycopg
from psycopg import AsyncConnection

from orders import database
from orders.backoff import backoff

log = logging.getLogger(__name__)

LOCK: LiteralString = "SELECT pg_try_advisory_lock('orders'::regclass::oid::integer, %s::integer)"
BEAT: LiteralString = "SELECT 1"
BEAT_SECONDS = 1.0
SILENCE = "3000"  # milliseconds after which the server ends a silent session


class Liveness:
    """Owns the connection and the lock; `number` is what the claims of this process store."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.number = secrets.randbelow(2**31 - 1) + 1
        self.held = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Liveness":
        self._task = asyncio.create_task(self._run(), name="liveness")
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
                conn = await database.connect(self.url, "orders-worker-liveness", idle_session_timeout=SILENCE)
                pauses = backoff()
                await self._hold(conn)
            except psycopg.Error as error:
                log.warning("the worker's lock is lost: %s", error)
            finally:
                self.held.clear()
                await database.close(conn)
            await asyncio.sleep(next(pauses))

    async def _hold(self, conn: AsyncConnection) -> None:
        """Take the lock and keep it until the connection is lost."""
        while True:
            with database.deadline(conn, BEAT_SECONDS):
                if not self.held.is_set():
                    cursor = await conn.execute(LOCK, [self.number])
                    row = await cursor.fetchone()
                    if row and row[0]:  # else the server has not noticed yet that our last connection is gone
                        self.held.set()
                else:
                    await conn.execute(BEAT)
            await asyncio.sleep(BEAT_SECONDS if self.held.is_set() else 0.1)
