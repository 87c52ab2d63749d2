"""Shows other workers that this one is alive: an advisory lock, held by a connection and released when it ends.

The lock has a thread and an event loop of its own: a handler that blocks the worker's loop does not lose it, and nobody
runs the handlers of the other orders in hand a second time. A stopped process stops this thread as well; the server
ends its session after 3 s, and then its orders may be taken over.
"""

import asyncio
import contextlib
import secrets
import threading
from typing import LiteralString, Self

import psycopg
from psycopg import AsyncConnection

from orders.database import postgres
from orders.database.session import Session

LOCK: LiteralString = "SELECT pg_try_advisory_lock('orders'::regclass::oid::integer, %s::integer)"
# The numbers of the workers that are alive.
ALIVE: LiteralString = """
        SELECT objid::bigint AS worker FROM pg_locks
        WHERE locktype = 'advisory' AND granted
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND classid = 'orders'::regclass::oid AND objsubid = 2
"""
BEAT: LiteralString = "SELECT 1"
BEAT_SECONDS = 1.0
REQUIRE_SECONDS = 0.5  # below the deadline of the statement that waits for it
SILENCE = "3000"  # milliseconds after which the server ends a silent session


class WorkerLock:
    """Holds the lock; the claims of this process store its `number`, a random 31-bit integer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.number = secrets.randbelow(2**31 - 1) + 1
        self.held = asyncio.Event()  # of the worker's own loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()  # of the thread's loop
        self._thread = threading.Thread(target=self._run, name="worker-lock", daemon=True)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._beating = asyncio.new_event_loop()
        self._thread.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Release the lock, without waiting for the server."""
        self._beating.call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(self._thread.join)

    async def require(self) -> None:
        """Wait until the lock is held, at most REQUIRE_SECONDS.

        Raises psycopg.errors.LockNotAvailable, which has a batcher run the statement again on the same connection.
        """
        try:
            async with asyncio.timeout(REQUIRE_SECONDS):
                await self.held.wait()
        except TimeoutError:
            raise psycopg.errors.LockNotAvailable("the worker's lock is not held") from None

    def _run(self) -> None:
        with contextlib.closing(self._beating):
            self._beating.run_until_complete(self._hold_until_stopped())

    async def _hold_until_stopped(self) -> None:
        session = Session("worker-lock", self.url, lambda conn: self._hold(conn, session), idle_session_timeout=SILENCE)
        async with session:
            await self._stop.wait()

    async def _hold(self, conn: AsyncConnection, session: Session) -> None:
        """Take the lock and keep it until the connection is lost."""
        is_held = False
        try:
            while not session.stopping.is_set():
                with postgres.deadline(conn, BEAT_SECONDS):
                    if is_held:
                        await conn.execute(BEAT)
                    else:
                        row = await (await conn.execute(LOCK, [self.number])).fetchone()
                        is_held = bool(row and row[0])  # else the server has not noticed that the last session is gone
                        self._tell(is_held)
                await session.pause(BEAT_SECONDS if is_held else 0.1)
        finally:
            self._tell(False)

    def _tell(self, is_held: bool) -> None:
        """Have the worker's loop know whether the lock is held."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(self.held.set if is_held else self.held.clear)
