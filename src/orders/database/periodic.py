"""What a process asks the database again and again: jobs on one connection, each at its own pace."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from psycopg import AsyncConnection

from orders.database import postgres
from orders.database.session import Session

IDLE_SECONDS = 1.0  # between two looks at whether a job is wanted that was not


def _always() -> bool:
    return True


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to ask; times are seconds."""

    run: Callable[[AsyncConnection], Awaitable[None]]
    every: float  # from the start of one run to the start of the next
    deadline: float = 1.0  # then the connection is severed
    wanted: Callable[[], bool] = _always


class Periodic(Session):
    """Runs the jobs, one at a time; every job is one that may be cut off.

    Whoever begins to want one calls `soon()`, or waits up to IDLE_SECONDS for it.
    """

    def __init__(self, name: str, url: str, jobs: Sequence[Job], **settings: str) -> None:
        super().__init__(name, url, self._do_what_is_due, **settings)
        self.jobs = jobs
        self._look = asyncio.Event()

    def soon(self) -> None:
        """Look at once at what is wanted."""
        self._look.set()

    async def __aexit__(self, *exc: object) -> None:
        self._look.set()
        await super().__aexit__(*exc)

    async def _do_what_is_due(self, conn: AsyncConnection) -> None:
        loop = asyncio.get_running_loop()
        ran = [float("-inf")] * len(self.jobs)
        while not self.stopping.is_set():
            self._look.clear()
            look_at = loop.time() + IDLE_SECONDS
            for number, job in enumerate(self.jobs):
                if not job.wanted():
                    continue
                if ran[number] + job.every <= loop.time():
                    ran[number] = loop.time()
                    with postgres.deadline(conn, job.deadline):
                        await job.run(conn)
                look_at = min(look_at, ran[number] + job.every)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(look_at):
                    await self._look.wait()
