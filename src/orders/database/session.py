"""A connection for one task: replaced whenever it is lost, severed at the end."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Self

import psycopg
from psycopg import AsyncConnection

from orders.database import postgres
from orders.model.error_text import first_line
from orders.runtime.crash import stop_the_process_if_it_crashed
from orders.runtime.retry_pauses import backoff

log = logging.getLogger(__name__)

Work = Callable[[AsyncConnection], Awaitable[None]]

SOUND_SECONDS = 1.0  # after a connection that lasted this long, the pauses between tries start short again


class Session:
    """Owns a connection and its task. `work` is called with each new connection, and uses it until it is lost.

    `work` has to return once `stopping` is set; a statement that runs at that moment ends with the connection. `name`
    becomes the application_name `orders-<name>`, and `settings` are PostgreSQL settings of the session.
    """

    def __init__(self, name: str, url: str, work: Work, **settings: str) -> None:
        self.name = name
        self.url = url
        self.work = work
        self.settings = settings
        self.stopping = asyncio.Event()
        self._conn: AsyncConnection | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=self.name)
        self._task.add_done_callback(stop_the_process_if_it_crashed)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End the statement that runs at this moment, without waiting for the server."""
        self.stopping.set()
        if self._task is not None:
            if self._conn is None:
                self._task.cancel()
            else:  # a cancellation would ask the server to cancel the query, and wait for it
                postgres.sever(self._conn)
            await asyncio.wait([self._task])

    async def pause(self, seconds: float) -> None:
        """Wait for `seconds`, or until `stopping` is set."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self.stopping.wait()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pauses = backoff()
        last_logged = ""
        while not self.stopping.is_set():
            since: float | None = None
            try:
                self._conn = await postgres.connect(self.url, f"orders-{self.name}", **self.settings)
                since = loop.time()
                await self.work(self._conn)
            except psycopg.Error as error:
                if (message := first_line(error)) != last_logged and not self.stopping.is_set():
                    log.warning("%s: %s", self.name, message)  # once for each trouble, not for each try
                last_logged = message
            finally:
                await postgres.close(self._conn)
                self._conn = None
            if since is not None and loop.time() - since > SOUND_SECONDS:
                pauses = backoff()
                last_logged = ""
            await self.pause(next(pauses))
