"""Listen for the writers' notifications, so that an idle relay sees a commit within milliseconds.

Writers notify from a connection of their own, after the commit and debounced. A notification that is lost costs the
poll interval and nothing else.
"""

import asyncio
import logging
import time
from typing import LiteralString

from relay.backoff import backoff_seconds
from relay.database import Connection, DatabaseLost, ask_for_writes, close, connect, translated
from relay.metrics import Vitals

log = logging.getLogger("relay")

ASK_SECONDS = 5.0  # between two questions whether writers would still notify here

LISTEN: LiteralString = """
    SET tcp_user_timeout = '5s';
    LISTEN outbox
"""


class Listener:
    """Sets an event whenever a writer says that it has committed."""

    def __init__(self, url: str, vitals: Vitals, wake: asyncio.Event) -> None:
        self._url = url
        self._vitals = vitals
        self._wake = wake

    async def run(self, stop: asyncio.Event) -> None:
        """Listen until told to stop; a lost connection is replaced."""
        failures = 0
        while not stop.is_set():
            try:
                conn = await connect(self._url, "relay-wake", LISTEN)
            except DatabaseLost:
                failures += 1
                await asyncio.sleep(backoff_seconds(failures, 0.1, 2.0))
                continue
            failures = 0
            self._wake.set()  # what was said while nobody listened
            try:
                await self._listen(conn, stop)
            except DatabaseLost as lost:
                log.debug("listening connection lost: %s", lost)
            finally:
                await close(conn)

    async def _listen(self, conn: Connection, stop: asyncio.Event) -> None:
        asked_at = time.monotonic()
        with translated():
            while not stop.is_set():
                if time.monotonic() > asked_at + ASK_SECONDS:
                    asked_at = time.monotonic()
                    await ask_for_writes(conn)
                async for _ in conn.notifies(timeout=1.0, stop_after=1):
                    self._vitals.woken.inc()
                    self._wake.set()
