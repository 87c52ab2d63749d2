"""Tell the relay that there is something to carry, after the commit and on a connection of its own.

A NOTIFY in the writing transaction would take a lock of the whole cluster until that commit is flushed, and halve the
rate of commits. This one is only a hint: a lost one costs the relay's poll interval, nothing else.
"""

import asyncio
import logging
from typing import LiteralString

import psycopg

from orders import database
from orders.backoff import backoff

log = logging.getLogger(__name__)

NOTIFY: LiteralString = "NOTIFY outbox"
APART_SECONDS = 0.005  # under load one hint serves all the commits of this time


class WakeUp:
    """Owns the connection and the task; `soon()` costs its caller nothing."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def soon(self) -> None:
        """Send a hint within some milliseconds."""
        self._wanted.set()

    async def __aenter__(self) -> "WakeUp":
        self._task = asyncio.create_task(self._run(), name="wake-up")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        conn: psycopg.AsyncConnection | None = None
        pauses = backoff()
        try:
            while True:
                await self._wanted.wait()
                try:
                    conn = conn or await database.connect(self.url, "orders-wake-up")
                    self._wanted.clear()
                    with database.deadline(conn, 1):
                        await conn.execute(NOTIFY)
                    pauses = backoff()
                    await asyncio.sleep(APART_SECONDS)
                except psycopg.Error as error:
                    log.debug("wake-up: %s", error)
                    await database.close(conn)
                    conn = None
                    await asyncio.sleep(next(pauses))
        finally:
            await database.close(conn)
