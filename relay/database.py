"""PostgreSQL connections with deadlines of our own, and the one place that knows psycopg's errors."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo

CONNECT_SECONDS = 3
STATEMENT_SECONDS = 5.0

TAKES_NO_WRITES: LiteralString = "SELECT current_setting('transaction_read_only')::boolean"

Connection = AsyncConnection[tuple[Any, ...]]


class DatabaseLost(Exception):
    """The connection to PostgreSQL is gone, or of no use any more."""


class SchemaMissing(Exception):
    """The outbox is not there, or not ours to use."""


async def connect(url: str, name: str, session: LiteralString) -> Connection:
    """Open a connection to a server that takes writes, with these session settings; autocommit."""
    given = conninfo_to_dict(url)
    given.setdefault("target_session_attrs", "read-write")
    given.setdefault("connect_timeout", str(CONNECT_SECONDS))
    given.setdefault("application_name", name)
    given.setdefault("keepalives_idle", "5")
    given.setdefault("keepalives_interval", "2")
    given.setdefault("keepalives_count", "2")
    with translated():
        conn = await AsyncConnection.connect(make_conninfo("", **given), autocommit=True)
    try:
        with deadline(conn, STATEMENT_SECONDS):
            await conn.execute(session)
    except BaseException:
        await close(conn)
        raise
    return conn


async def close(conn: Connection) -> None:
    """Close without waiting for a server that may not answer."""
    sever(conn)
    with suppress(psycopg.Error):
        await conn.close()


def sever(conn: Connection) -> None:
    """Cut the socket under the connection: what waits on it fails by itself.

    A stopped server keeps acknowledging TCP, and psycopg's cancel hangs on it as the query does.
    """
    if conn.closed:
        return
    with suppress(psycopg.Error, OSError):
        wire = socket.socket(fileno=conn.fileno())  # no copy: it has to work with no descriptor left, too
        try:
            wire.shutdown(socket.SHUT_RDWR)
        finally:
            wire.detach()


async def ask_for_writes(conn: Connection) -> None:
    """Raise DatabaseLost if the server takes no writes any more."""
    row = await (await conn.execute(TAKES_NO_WRITES)).fetchone()
    assert row is not None
    refuse_read_only(row[0])


def refuse_read_only(is_read_only: bool) -> None:
    """A server that was demoted, but keeps its connections, is of no use any more: another one of the URL may be."""
    if is_read_only:
        raise DatabaseLost("the server takes no writes any more")


@contextmanager
def deadline(conn: Connection, seconds: float) -> Iterator[None]:
    """Bound what happens inside: past the deadline the connection is severed. Errors are translated."""
    handle = asyncio.get_running_loop().call_later(seconds, sever, conn)
    try:
        with translated():
            yield
    finally:
        handle.cancel()


@contextmanager
def translated() -> Iterator[None]:
    """Turn psycopg's errors into ours; one that is neither weather nor a missing schema is a bug and passes."""
    try:
        yield
    except (errors.UndefinedTable, errors.UndefinedFunction, errors.UndefinedColumn) as error:
        raise SchemaMissing(
            f"the outbox table is missing or older than this relay ({_first_line(error)}): "
            "run `alembic upgrade head`, or load what `relay schema` prints"
        ) from error
    except errors.InsufficientPrivilege as error:
        raise SchemaMissing(f"{_first_line(error)}: `relay schema` prints the grants") from error
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError) as error:
        # InternalError: 25006 after a demotion, 25P03 when a stop outlasted the session's patience.
        raise DatabaseLost(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
