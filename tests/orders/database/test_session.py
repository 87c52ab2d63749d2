"""A task's own connection comes back whenever it is lost, and its end waits for no server."""

import asyncio

import pytest
from psycopg import AsyncConnection

from dev.sandbox.wire import Wire
from orders.database.session import Session
from tests.eventually import eventually


class Asking:
    """Work that asks again and again, and counts."""

    def __init__(self) -> None:
        self.connections = 0
        self.answers = 0

    async def work(self, conn: AsyncConnection) -> None:
        self.connections += 1
        while True:
            await conn.execute("SELECT 1")
            self.answers += 1
            await asyncio.sleep(0.01)


async def test_lost_connection_is_made_again(database_url: str, wire: Wire) -> None:
    """
    Each connection that is lost is followed by another, also after a time in which none could be made.
    """
    asking = Asking()
    async with Session("asking", wire.url(database_url), asking.work):
        await eventually(lambda: asking.answers)
        wire.reset()
        await eventually(lambda: asking.connections == 2)
        wire.cut()
        await eventually(lambda: wire.open_ends == 0)
        wire.mend()
        await eventually(lambda: asking.connections == 3)


async def test_end_while_the_server_is_silent(database_url: str, wire: Wire) -> None:
    """
    A query that nobody will answer ends with the session, and leaves no task behind.
    """
    asked = asyncio.Event()

    async def work(conn: AsyncConnection) -> None:
        wire.silence()
        asked.set()
        await conn.execute("SELECT 1")

    async with Session("asking", wire.url(database_url), work):
        await asked.wait()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "asking"]


async def test_end_while_it_connects(database_url: str, wire: Wire) -> None:
    """
    A connect that nobody answers is given up with the session.
    """
    wire.silence()
    asking = Asking()
    async with Session("asking", wire.url(database_url), asking.work):
        await eventually(lambda: wire.accepted)
    assert asking.connections == 0


async def test_end_between_two_queries(database_url: str) -> None:
    """
    Work that pauses goes on at once when the session stops, and returns.
    """
    returned = False

    async def work(conn: AsyncConnection) -> None:
        nonlocal returned
        paused.set()
        await session.pause(3600)
        returned = session.stopping.is_set()

    paused = asyncio.Event()
    async with Session("pausing", database_url, work) as session:
        await paused.wait()
    assert returned


async def test_crash_stops_the_process(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An error that is not of the database is a bug: the process is told to end, instead of living on without this task.
    """
    raised: list[int] = []
    monkeypatch.setattr("signal.raise_signal", raised.append)

    async def work(conn: AsyncConnection) -> None:
        raise RuntimeError("a bug")

    async with Session("crashing", database_url, work):
        await eventually(lambda: raised)
