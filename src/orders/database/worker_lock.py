"""Shows other workers that this one is alive: an advisory lock, held by a connection and released when it ends.

A stopped worker sends no statement, and the server ends its session after 3 s; then its orders may be taken over.
"""

import asyncio
import secrets
from typing import LiteralString

import psycopg
from psycopg import AsyncConnection

from orders.database import postgres
from orders.database.session import Session

LOCK: LiteralString = "SELECT pg_try_advisory_lock('orders'::regclass::oid::integer, %s::integer)"
BEAT: LiteralString = "SELECT 1"
BEAT_SECONDS = 1.0
REQUIRE_SECONDS = 0.5  # below the deadline of the statement that waits for it
SILENCE = "3000"  # milliseconds after which the server ends a silent session


class WorkerLock(Session):
    """Holds the lock; the claims of this process store its `number`, a random 31-bit integer."""

    def __init__(self, url: str) -> None:
        super().__init__("worker-lock", url, self._hold, idle_session_timeout=SILENCE)
        self.number = secrets.randbelow(2**31 - 1) + 1
        self.held = asyncio.Event()

    async def require(self) -> None:
        """Wait until the lock is held, at most REQUIRE_SECONDS.

        Raises psycopg.errors.LockNotAvailable, which has a batcher run the statement again on the same connection.
        """
        try:
            async with asyncio.timeout(REQUIRE_SECONDS):
                await self.held.wait()
        except TimeoutError:
            raise psycopg.errors.LockNotAvailable("the worker's lock is not held") from None

    async def _hold(self, conn: AsyncConnection) -> None:
        """Take the lock and keep it until the connection is lost."""
        try:
            while not self.stopping.is_set():
                with postgres.deadline(conn, BEAT_SECONDS):
                    if not self.held.is_set():
                        cursor = await conn.execute(LOCK, [self.number])
                        row = await cursor.fetchone()
                        if row and row[0]:  # else the server has not noticed yet that the last connection is gone
                            self.held.set()
                    else:
                        await conn.execute(BEAT)
                await self.pause(BEAT_SECONDS if self.held.is_set() else 0.1)
        finally:
            self.held.clear()
