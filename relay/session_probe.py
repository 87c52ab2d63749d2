"""Proves at a process's start that a connection is a session of PostgreSQL of its own, and not one that a pooler lends.

Locks, LISTEN, prepared statements and settings belong to a session. A pooler in transaction mode gives it to another
connection after each transaction: a lock then lives on in the pooler when its process is dead.
"""

import secrets
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo

ROUNDS = 10  # behind a pooler, which may happen to give both connections what they had before

REMEDY = "connect to PostgreSQL itself, or to a pooler in session mode (docs/deployment.md, Poolers)"
MARK = "-c session.probe=kept"

TAKE: LiteralString = """
    SELECT pg_try_advisory_lock(%s::bigint), pg_backend_pid(), pg_postmaster_start_time()::text,
           current_setting('session.probe', true)
"""

LOOK: LiteralString = """
    SELECT pg_backend_pid(), EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid() AND objsubid = 1
        AND (classid::bigint << 32 | objid::bigint) = %s::bigint)
"""

LET_GO: LiteralString = "SELECT pg_advisory_unlock(%s::bigint)"


def marked(url: str) -> str:
    """Return the URL with a mark among its `options`, if it has any: a pooler may drop them in silence."""
    options = conninfo_to_dict(url).get("options")
    return make_conninfo(url, options=f"{options} {MARK}") if options else url


def beside(url: str, first: AsyncConnection[Any]) -> str:
    """Return the URL of the server of `first`, for the second connection."""
    info = first.info
    return make_conninfo(url, host=info.host or None, hostaddr=info.hostaddr or None, port=info.port)


def words_of_refusal(error: psycopg.Error) -> str:
    """Return what to do if a pooler refuses the settings of our sessions; "" for any other error."""
    if "unsupported startup parameter" not in str(error):
        return ""
    refused = str(error).rpartition("FATAL:")[2].strip().splitlines()[0]
    return (
        f"a pooler refuses the settings of a session ({refused}): connect to PostgreSQL itself, or set "
        "pool_mode = session and ignore_startup_parameters = options there (docs/deployment.md, Poolers)"
    )


async def fault_of_session(url: str, first: AsyncConnection[Any], second: AsyncConnection[Any]) -> str:
    """Return why two connections are no sessions of their own, and the remedy; "" if they are.

    `first` is opened with `marked(url)`, `second` with what `beside` returns; both are new, and in autocommit mode.
    """
    key = secrets.randbits(62)
    try:
        fault = await _fault(bool(conninfo_to_dict(url).get("options")), first, second, key)
        if fault:
            for conn in (first, second):  # else the pooler keeps them
                await _ask(conn, LET_GO, key)
    except (errors.UndefinedFunction, errors.UndefinedTable, errors.FeatureNotSupported) as error:
        return f"the server does not know what a session needs ({error.diag.message_primary}): {REMEDY}"
    return fault


async def _fault(has_options: bool, first: AsyncConnection[Any], second: AsyncConnection[Any], key: int) -> str:
    shared = f"a pooler gives the session of one connection to others: {REMEDY}"
    is_held, pid, server, mark = await _ask(first, TAKE, key)
    is_held_twice, other_pid, other_server, _ = await _ask(second, TAKE, key)
    if server != other_server:  # as in the middle of a failover
        raise psycopg.OperationalError("two connections led to two servers")
    is_seen = False
    for _ in range(1 if pid == first.info.backend_pid else ROUNDS):
        pid_now, is_seen = await _ask(first, LOOK, key)
        other_pid_now, _ = await _ask(second, LOOK, key)
        if len({pid, pid_now}) + len({other_pid, other_pid_now}) > 2 or pid == other_pid:
            return shared
    if not is_held or not is_seen or is_held_twice:
        return f"the server's advisory locks lock nothing out, or are not shown: {REMEDY}"
    if has_options and mark is None:
        return (
            "a pooler drops the `options` of DATABASE_URL: connect to PostgreSQL itself, or set them by "
            "`ALTER ROLE ... SET` (docs/deployment.md, Poolers)"
        )
    return ""


async def _ask(conn: AsyncConnection[Any], statement: LiteralString, key: int) -> tuple[Any, ...]:
    row = await (await conn.execute(statement, [key], prepare=False)).fetchone()
    assert row is not None
    return tuple(row)
