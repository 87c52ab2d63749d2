"""Run an operator's command on the database: address, connection, deadlines, errors, and the actor it audits."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psycopg
from psycopg import AsyncConnection

from orders.database import postgres
from orders.model.error_text import first_line
from orders.runtime.settings import DatabaseSettings
from orders.tools.command_line import fail
from orders.tools.run_env import environment_for

T = TypeVar("T")

CALL_SECONDS = 30.0


def run_on_database(
    program: str,
    act: Callable[[AsyncConnection], Awaitable[T]],
    *,
    is_one_call: bool = True,
    statement_seconds: float = CALL_SECONDS,
    after_error: str = "",
) -> T:
    """Return what `act` returns, run on a connection of its own, which is named after `program`.

    PostgreSQL ends a statement after `statement_seconds`. `is_one_call`: `act` as a whole ends within CALL_SECONDS.
    Ends the process with one line and exit code 1 if the database fails or is not migrated; `after_error` is added to
    that line.
    """
    settings = DatabaseSettings.read_or_exit(program, environment_for(DatabaseSettings))
    limit = str(round(statement_seconds * 1000))

    async def run() -> T:
        conn = await postgres.connect(settings.database_url, program.replace(" ", "-"), statement_timeout=limit)
        try:
            return await (within(conn, act(conn)) if is_one_call else act(conn))
        finally:
            await postgres.close(conn)

    try:
        return asyncio.run(run())
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        fail(program, f"the database is not migrated ({error.diag.message_primary}): run `alembic upgrade head`")
    except psycopg.Error as error:
        fail(program, first_line(error) + after_error)


async def within(conn: AsyncConnection, call: Awaitable[T]) -> T:
    """Return the result of a call on `conn`; after CALL_SECONDS, close the connection, which ends the call.

    Raises psycopg.OperationalError then.
    """
    with postgres.deadline(conn, CALL_SECONDS):
        return await call
