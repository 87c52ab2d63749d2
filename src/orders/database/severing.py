"""Ends a call to PostgreSQL whatever the server does, by shutting its socket down."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg import AsyncConnection


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
        sever(conn)
        with suppress(psycopg.Error):
            await conn.close()
