"""A command on the database has a connection, ends with one line, and names its user in the audit."""

import getpass
import socket
import time
from types import ModuleType
from typing import LiteralString

import pytest
from psycopg import AsyncConnection

from orders.tools import database_command, dead_letters
from orders.tools.database_command import run_on_database, within
from orders.tools.reconcile import run


@pytest.mark.parametrize("command", [dead_letters, run])
@pytest.mark.parametrize("error", [KeyError, OSError])  # up to Python 3.12, and since
def test_a_user_without_a_name(command: ModuleType, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    In a container whose user has no name, each command that leaves an audit row runs all the same.
    """

    def no_name() -> str:
        raise error("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", no_name)

    assert command.actor() == f"somebody@{socket.gethostname()}"


def test_it_runs_on_the_database_of_the_environment(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The connection has the command's name and the limit of its statements; the result is the action's.
    """
    monkeypatch.setenv("DATABASE_URL", database_url)

    async def look(conn: AsyncConnection) -> object:
        cursor = await conn.execute("SELECT current_setting('application_name'), current_setting('statement_timeout')")
        return await cursor.fetchone()

    assert run_on_database("orders some command", look) == ("orders-some-command", "30s")
    assert run_on_database("orders some command", look, is_one_call=False, statement_seconds=7.0) == (
        "orders-some-command", "7s",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("SELECT * FROM no_such_table", "run `alembic upgrade head`"),
        ("SELECT no_such_column FROM orders", "run `alembic upgrade head`"),
        ("SELECT 1/0", "division by zero; try again"),
    ],
)
def test_an_error_of_the_database_is_one_line(
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    statement: LiteralString,
    complaint: str,
) -> None:
    """
    A database that is not migrated is told apart from every other error.
    """
    monkeypatch.setenv("DATABASE_URL", database_url)

    with pytest.raises(SystemExit) as ended:
        run_on_database("orders test", lambda conn: conn.execute(statement), after_error="; try again")

    assert ended.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("orders test: ")
    assert complaint in line


def test_a_call_ends_at_its_deadline(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    A server that does not answer ends the command at the deadline, not at the statement's own limit.
    """
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setattr(database_command, "CALL_SECONDS", 0.2)

    async def sleep(conn: AsyncConnection) -> object:
        return await within(conn, conn.execute("SELECT pg_sleep(20)"))

    started = time.monotonic()
    with pytest.raises(SystemExit):
        run_on_database("orders test", sleep, is_one_call=False)

    assert time.monotonic() - started < 10
    assert len(capsys.readouterr().err.splitlines()) == 1
