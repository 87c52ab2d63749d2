"""A connection to PostgreSQL whose every call ends, whatever the server does."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.numeric import Int8BinaryDumper, Int8Dumper

from orders.errors import StartupError

CONNECT_SECONDS = 3.0

# What every session of ours sets, whatever the server's defaults are.
_SESSION = {
    "synchronous_commit": "on",  # a 2xx means flushed
    # A stopped or unreachable client keeps its connection, and with it its locks, until these take them away.
    "idle_in_transaction_session_timeout": "1500",
    "tcp_user_timeout": "1500",
    "statement_timeout": "10000",  # the backstop; our own deadlines are shorter
    "lock_timeout": "5000",
    "timezone": "UTC",
    # Our statements are short; compiling one can take seconds, and a plan that is only discouraged looks costly enough.
    "jit": "off",
    "client_min_messages": "warning",
}


async def connect(url: str, name: str, **session: str) -> AsyncConnection:
    """Open an autocommit connection to the first host of `url` that takes writes.

    `session` adds to or overrides the settings of the session. Raises psycopg.OperationalError within CONNECT_SECONDS
    or so, also when the server's machine takes the connection and its process never answers.
    """
    given = str(conninfo_to_dict(url).get("options") or "")
    options = " ".join([given, *(f"-c {key}={value}" for key, value in {**_SESSION, **session}.items())])
    try:
        async with asyncio.timeout(CONNECT_SECONDS * (1 + url.count(","))):
            conn = await AsyncConnection.connect(
                url,
                autocommit=True,
                connect_timeout=2,  # for each host; the least that psycopg takes
                application_name=name,
                options=options.strip(),
                target_session_attrs="read-write",
                keepalives_idle=5,
                keepalives_interval=1,
                keepalives_count=3,
            )
    except TimeoutError:
        raise psycopg.OperationalError("the server does not answer") from None
    # One type for every integer: else a list's type follows its largest value, and each type is another prepared plan.
    conn.adapters.register_dumper(int, Int8BinaryDumper)
    conn.adapters.register_dumper(int, Int8Dumper)
    return conn


@contextlib.contextmanager
def deadline(conn: AsyncConnection, seconds: float) -> Iterator[None]:
    """Sever the connection if the block takes longer than `seconds`: its call then ends with OperationalError.

    Not a cancellation: psycopg would first ask the server to cancel the query, and wait for it, and a server that is
    stopped answers neither.
    """
    timer = asyncio.get_running_loop().call_later(seconds, sever, conn)
    try:
        yield
    finally:
        timer.cancel()


def sever(conn: AsyncConnection) -> None:
    """Shut the socket down under the connection, so that whoever waits for it sees the end of the stream."""
    if conn.closed:
        return
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(conn.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


async def close(conn: AsyncConnection | None) -> None:
    """Close a connection, also a broken one, without waiting for the server."""
    if conn is not None:
        sever(conn)
        with contextlib.suppress(psycopg.Error):
            await conn.close()


async def require(conn: AsyncConnection, *statements: str) -> None:
    """Run statements that lean on each column we use; raise StartupError if the schema lacks one."""
    for statement in statements:
        try:
            with deadline(conn, 5):
                await conn.execute(statement)
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
            raise StartupError(
                f"the database is not migrated ({error.diag.message_primary}): run `alembic upgrade head`"
            ) from None
        except psycopg.errors.InsufficientPrivilege as error:
            raise StartupError(
                f"the database refuses this user ({error.diag.message_primary}): grant it, see docs/deployment.md"
            ) from None
