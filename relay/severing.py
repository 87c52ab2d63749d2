"""Ends a call to PostgreSQL whatever the server does, and bounds what severed connections leave running there."""

import asyncio
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import LiteralString
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

MOST_LEFT = 3  # backends of one purpose that severed connections left at work; then no other connection is opened
LOOK_SECONDS = 0.25  # between two looks at them, each on a connection of its own
LOOK_DEADLINE_SECONDS = 0.5

AT_WORK: LiteralString = """
    SELECT pid, extract(epoch FROM clock_timestamp() - query_start)::float8, coalesce(wait_event, 'nothing')
    FROM pg_stat_activity WHERE pid = ANY(%s::integer[]) AND state = 'active'
"""


@contextmanager
def deadline(conn: AsyncConnection, seconds: float) -> Iterator[None]:
    """Sever the connection if the block takes longer than `seconds`: its call then ends with OperationalError.

    Not a cancellation: psycopg would first ask the server to cancel the query, and wait for it, and a server that is
    stopped acknowledges TCP and answers neither.
    """
    timer = asyncio.get_running_loop().call_later(seconds, sever, conn)
    try:
        yield
    finally:
        timer.cancel()


def sever(conn: AsyncConnection) -> None:
    """Shut the socket of the connection down, so that a call that waits for it sees the end of the stream."""
    if conn.closed:
        return
    with suppress(psycopg.Error, OSError):
        wire = socket.socket(fileno=conn.fileno())  # no copy: it has to work with no descriptor left, too
        try:
            wire.shutdown(socket.SHUT_RDWR)
        finally:
            wire.detach()


async def close(conn: AsyncConnection | None) -> None:
    """Close a connection, also a broken one, without waiting for the server."""
    if conn is not None:
        purpose, pid = _opened.pop(conn, (None, 0))
        if purpose is not None and conn.info.transaction_status != TransactionStatus.IDLE:
            purpose.leave(pid)
        sever(conn)
        with suppress(psycopg.Error):
            await conn.close()


class Purpose:
    """The connections of this process that have one purpose, and the backends that lost ones may have left at work.

    A backend whose commit waits for a synchronous standby, or for a disk, does not notice that its client is gone, and
    no timeout of the server ends it. While MOST_LEFT are at work, this purpose gets no further connection; others do.
    """

    def __init__(self) -> None:
        self._left: dict[int, float] = {}  # backend pid: when it was left, in monotonic time
        self._complaint = ""  # empty: not at the bound, as far as is known
        self._look_at = 0.0

    def refuse_at_the_bound(self) -> None:
        """Raise OperationalError before a connection is opened, if the last look has just found too many at work."""
        if self._complaint:
            if time.monotonic() < self._look_at:
                raise psycopg.OperationalError(self._complaint)
            self._look_at = time.monotonic() + LOOK_SECONDS  # this one looks, the others wait for what it finds

    async def admit(self, conn: AsyncConnection) -> None:
        """Count a connection that was just opened; close it and raise OperationalError if too many are at work."""
        _opened[conn] = self, conn.info.backend_pid
        if len(self._left) < MOST_LEFT:
            return
        try:
            waits = await self._look(conn)
        except BaseException:
            await close(conn)
            raise
        if len(self._left) < MOST_LEFT:
            self._complaint = ""
            return
        self._complaint = (
            f"{len(self._left)} connections that were given up are still at work in the server, waiting for "
            f"{', '.join(sorted(waits))}: no other is opened until they end"
        )
        self._look_at = time.monotonic() + LOOK_SECONDS
        await close(conn)
        raise psycopg.OperationalError(self._complaint)

    def leave(self, pid: int) -> None:
        """Remember a backend that may not have noticed that its client is gone."""
        self._left[pid] = time.monotonic()

    async def _look(self, conn: AsyncConnection) -> set[str]:
        """Forget the backends that are gone; return the names of the events that the others wait for.

        A backend counts while it is at work on what it had begun when it was left. So a pid that has another session
        meanwhile does not count, and neither does an idle one, which ends as soon as it hears that its client is gone.
        """
        asked_at = time.monotonic()
        asked = dict(self._left)
        with deadline(conn, LOOK_DEADLINE_SECONDS):
            cursor = await conn.execute(AT_WORK, [list(asked)])
            at_work = {pid: wait for pid, age, wait in await cursor.fetchall() if age >= asked_at - asked[pid]}
        for pid in asked.keys() - at_work.keys():
            self._left.pop(pid, None)
        return set(at_work.values())


purposes: defaultdict[str, Purpose] = defaultdict(Purpose)
_opened: WeakKeyDictionary[AsyncConnection, tuple[Purpose, int]] = WeakKeyDictionary()
