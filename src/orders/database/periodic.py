"""Recurring jobs of a process: they share one connection, and each has an interval of its own."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from psycopg import AsyncConnection

from orders.database import postgres
from orders.database.session import Session

IDLE_SECONDS = 1.0  # between two checks whether a job has become wanted


def _always() -> bool:
    return True


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A recurring job."""

    run: Callable[[AsyncConnection], Awaitable[None]]
    every: float  # seconds, from the start of one run to the start of the next
    deadline: float = 1.0  # seconds that a run may take; then the connection is severed
    wanted: Callable[[], bool] = _always  # a job that is not wanted does not run


class Periodic(Session):
    """Runs the jobs, one at a time; it has to be harmless to cut a job off.

    A caller that makes a job wanted calls `soon()`; without that call the job starts up to IDLE_SECONDS later.
    """

    def __init__(self, name: str, url: str, jobs: Sequence[Job], **settings: str) -> None:
        super().__init__(name, url, self._run_due_jobs, **settings)
        self.jobs = jobs
        self._check = asyncio.Event()

    def soon(self) -> None:
        """Check at once which jobs are wanted."""
        self._check.set()

    async def __aexit__(self, *exc: object) -> None:
        self._check.set()
        await super().__aexit__(*exc)

    async def _run_due_jobs(self, conn: AsyncConnection) -> None:
        loop = asyncio.get_running_loop()
        last_run = [float("-inf")] * len(self.jobs)
        while not self.stopping.is_set():
            self._check.clear()
            check_at = loop.time() + IDLE_SECONDS
            for number, job in enumerate(self.jobs):
                if not job.wanted():
                    continue
                if last_run[number] + job.every <= loop.time():
                    last_run[number] = loop.time()
                    with postgres.deadline(conn, job.deadline):
                        await job.run(conn)
                check_at = min(check_at, last_run[number] + job.every)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(check_at):
                    await self._check.wait()
