"""Connections to PostgreSQL, deadlines for its answers, and the meaning of psycopg's errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection, AsyncCursor, errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from relay import session_probe, severing
from relay.error_text import first_line
from relay.severing import close

CONNECT_SECONDS = 3
STATEMENT_SECONDS = 5.0

TAKES_NO_WRITES: LiteralString = "SELECT current_setting('transaction_read_only')::boolean"

# Every value is written and read in these forms, whatever the database, the role or the environment would have.
FORMS: LiteralString = """
    SET timezone = 'UTC';
    SET datestyle = 'ISO';
    SET intervalstyle = 'postgres';
    SET bytea_output = 'hex';
    SET extra_float_digits = 1;
    SET standard_conforming_strings = on;
"""

Connection = AsyncConnection[tuple[Any, ...]]
Cursor = AsyncCursor[tuple[Any, ...]]


class DatabaseLost(Exception):
    """The connection to PostgreSQL is lost, or the server does not take writes."""


class SchemaMissing(Exception):
    """The outbox is missing, older than this relay, or not open to this role."""


class SessionShared(Exception):
    """What answers gives no sessions of our own, as a pooler in transaction mode."""


async def require_own_session(url: str) -> None:
    """Raise SessionShared if locks, settings and LISTEN of a connection are not its own; raises DatabaseLost."""
    opened: list[Connection] = []
    try:
        with translated():
            opened.append(await _open(session_probe.marked(url), "relay-start"))
            opened.append(await _open(session_probe.beside(url, opened[0]), "relay-start"))
            with severing.deadline(opened[0], STATEMENT_SECONDS), severing.deadline(opened[1], STATEMENT_SECONDS):
                fault = await session_probe.fault_of_session(url, *opened)
    except DatabaseLost as lost:
        if isinstance(lost.__cause__, psycopg.Error) and (refusal := session_probe.words_of_refusal(lost.__cause__)):
            raise SessionShared(refusal) from lost
        raise
    finally:
        for conn in opened:
            await close(conn)
    if fault:
        raise SessionShared(fault)


async def connect(url: str, name: str, session: LiteralString) -> Connection:
    """Connect to the first server of the URL that takes writes, in autocommit mode.

    `name` is the application_name, `session` the statements to begin with. Raises DatabaseLost, also while too many
    severed connections of that name are still at work in the server, and SchemaMissing.
    """
    purpose = severing.purposes[name]
    with translated():
        purpose.refuse_at_the_bound()
        conn = await _open(url, name)
        await purpose.admit(conn)
    try:
        refuse_unreadable_text(conn)
        with deadline(conn, STATEMENT_SECONDS):
            await conn.execute(FORMS + session)
    except BaseException:
        await close(conn)
        raise
    return conn


async def _open(url: str, name: str) -> Connection:
    given = conninfo_to_dict(url)
    given["client_encoding"] = "UTF8"
    given.setdefault("target_session_attrs", "read-write")
    given.setdefault("connect_timeout", str(CONNECT_SECONDS))
    given.setdefault("application_name", name)
    given.setdefault("keepalives_idle", "5")
    given.setdefault("keepalives_interval", "2")
    given.setdefault("keepalives_count", "2")
    return await AsyncConnection.connect(make_conninfo("", **given), autocommit=True)


def refuse_unreadable_text(conn: Connection) -> None:
    """Raise SchemaMissing if text has no encoding there: PostgreSQL converts every other one to ours."""
    if conn.info.parameter_status("server_encoding") == "SQL_ASCII":
        raise SchemaMissing(
            "the encoding of this database is SQL_ASCII, which says nothing about its text: "
            "make it with `CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0`"
        )


async def ask_for_writes(conn: Connection) -> None:
    """Raise DatabaseLost if the server takes no writes any more."""
    row = await (await conn.execute(TAKES_NO_WRITES)).fetchone()
    assert row is not None
    refuse_read_only(row[0])


def refuse_read_only(is_read_only: bool) -> None:
    """Raise DatabaseLost if the server was demoted: it keeps its connections, but another server takes the writes."""
    if is_read_only:
        raise DatabaseLost("the server takes no writes any more")


@contextmanager
def deadline(conn: Connection, seconds: float) -> Iterator[None]:
    """Sever the connection if the block takes longer than `seconds`; translate its errors as `translated` does."""
    with translated(), severing.deadline(conn, seconds):
        yield


@contextmanager
def translated() -> Iterator[None]:
    """Turn psycopg's errors into DatabaseLost or SchemaMissing; any other error is a bug and passes."""
    try:
        yield
    except (errors.UndefinedTable, errors.UndefinedFunction, errors.UndefinedColumn) as error:
        raise SchemaMissing(
            f"the outbox table is missing or older than this relay ({first_line(error)}): "
            "run `alembic upgrade head`, or load what `relay schema` prints"
        ) from error
    except errors.InsufficientPrivilege as error:
        raise SchemaMissing(f"{first_line(error)}: `relay schema --writer ROLE` prints the grants") from error
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError) as error:
        # InternalError: 25006 after a demotion, 25P03 when a stop outlasted the session's patience.
        raise DatabaseLost(first_line(error)) from error
