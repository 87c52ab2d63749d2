"""What a process asks the database again and again: jobs on one connection, each at its own pace."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
import psycopg
from psycopg import AsyncConnection

from orders import database
from orders.backoff import backoff
from orders.batching import first_line
from orders.crash import stop_the_process_if_it_crashed

log = logging.getLogger(__name__)


def _always() -> bool:
    return True


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to ask; times are seconds."""

    run: Callable[[AsyncConnection], Awaitable[None]]
    every: float  # from the start of one run to the start of the next
    deadline: float = 1.0  # then the connection is severed
    wanted: Callable[[], bool] = _always


class Periodic:
    """Owns the connection and the task that runs the jobs, one at a time."""

    def __init__(self, name: str, url: str, jobs: Sequence[Job], session: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.url = url
        self.jobs = jobs
        self.session = session or {}
        self._stop = asyncio.Event()
        self._conn: AsyncConnection | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Periodic":
        self._task = asyncio.create_task(self._run(), name=self.name)
        self._task.add_done_callback(stop_the_process_if_it_crashed)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End what runs at this moment, too: every job is one that may be cut off."""
        self._stop.set()
        if self._conn is not None:
            database.sever(self._conn)
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        pauses = backoff()
        while not self._stop.is_set():
            try:
                self._conn = await database.connect(self.url, f"orders-{self.name}", **self.session)
                pauses = backoff()
                await self._work(self._conn)
            except psycopg.Error as error:
                if not self._stop.is_set():
                    log.warning("%s: %s", self.name, first_line(error))
            finally:
                await database.close(self._conn)
                self._conn = None
            await self._pause(next(pauses))

    async def _work(self, conn: AsyncConnection) -> None:
        """Run what is due until the connection is lost."""
        loop = asyncio.get_running_loop()
        due = [loop.time()] * len(self.jobs)
        while not self._stop.is_set():
            for number, job in enumerate(self.jobs):
                now = loop.time()
                if due[number] <= now:
                    due[number] = now + job.every
                    if job.wanted():
                        with database.deadline(conn, job.deadline):
                            await job.run(conn)
            await self._pause(min(due) - loop.time())

    async def _pause(self, seconds: float) -> None:
        """Wait, but not past the stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._stop.wait()
