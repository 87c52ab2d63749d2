"""What a process asks the database again and again: jobs on one connection, each at its own pace."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from psycopg import AsyncConnection

from orders import database
from orders.session import Session


def _always() -> bool:
    return True


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to ask; times are seconds."""

    run: Callable[[AsyncConnection], Awaitable[None]]
    every: float  # from the start of one run to the start of the next
    deadline: float = 1.0  # then the connection is severed
    wanted: Callable[[], bool] = _always


class Periodic(Session):
    """Runs the jobs, one at a time; every job is one that may be cut off."""

    def __init__(self, name: str, url: str, jobs: Sequence[Job], **settings: str) -> None:
        super().__init__(name, url, self._do_what_is_due, **settings)
        self.jobs = jobs

    async def _do_what_is_due(self, conn: AsyncConnection) -> None:
        loop = asyncio.get_running_loop()
        due = [loop.time()] * len(self.jobs)
        while not self.stopping.is_set():
            for number, job in enumerate(self.jobs):
                now = loop.time()
                if due[number] <= now:
                    due[number] = now + job.every
                    if job.wanted():
                        with database.deadline(conn, job.deadline):
                            await job.run(conn)
            await self.pause(min(due) - loop.time())
