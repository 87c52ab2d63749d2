"""Every call of the relay to PostgreSQL ends, whatever the server does."""

import asyncio
import resource

import pytest
from psycopg import sql
from psycopg.pq import TransactionStatus

from dev.sandbox.servers import Servers
from relay.database import DatabaseLost, SchemaMissing, connect, deadline
from relay.severing import MOST_LEFT, close
from tests import places
from tests.eventually import eventually


async def test_a_deadline_needs_no_descriptor(database_url: str) -> None:
    """
    With every descriptor in use a deadline still ends a call.
    """
    conn = await connect(database_url, "relay-test", "SELECT 1")

    async def wait_within_a_deadline() -> None:
        with deadline(conn, 0.5):
            await conn.execute("SELECT pg_sleep(30)")

    waiting = asyncio.create_task(wait_within_a_deadline())
    await eventually(lambda: conn.info.transaction_status == TransactionStatus.ACTIVE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(DatabaseLost):
            async with asyncio.timeout(10):
                await waiting
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await close(conn)


async def test_text_and_times_have_one_form(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Neither the environment nor the URL chooses another encoding or another form of times.
    """
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    monkeypatch.setenv("PGDATESTYLE", "SQL, DMY")
    conn = await connect(f"{database_url}?client_encoding=LATIN1&options=-c%20intervalstyle%3Diso_8601", "test", "")

    settings = ("client_encoding", "datestyle", "intervalstyle")
    values = [(await (await conn.execute("SELECT current_setting(%s)", [name])).fetchone()) for name in settings]
    assert values == [("UTF8",), ("ISO, DMY",), ("postgres",)]
    await close(conn)


async def test_encoding_that_says_nothing(servers: Servers) -> None:
    """
    A database of bytes in no encoding is refused in one line; every other encoding PostgreSQL converts.
    """
    for encoding, complaint in (("SQL_ASCII", "says nothing about its text: .*CREATE DATABASE"), ("LATIN1", None)):
        rest = sql.SQL(" ENCODING {} LOCALE 'C' TEMPLATE template0").format(sql.Literal(encoding))
        with places.database(servers, rest=rest) as url:
            if complaint:
                with pytest.raises(SchemaMissing, match=complaint):
                    await connect(url, "test", "")
            else:
                await close(await connect(url, "test", ""))


async def test_severed_connections_that_stand_are_bounded(database_url: str) -> None:
    """
    No other connection is opened for a purpose whose severed ones stand; for another purpose one is.
    """

    async def leave_at_work() -> None:
        conn = await connect(database_url, "relay-stuck", "SET client_connection_check_interval = 0")
        try:
            with deadline(conn, 0.1):
                await conn.execute("SELECT pg_sleep(600)")
        finally:
            await close(conn)

    for _ in range(MOST_LEFT):
        with pytest.raises(DatabaseLost, match="closed the connection"):
            await leave_at_work()
    for _ in range(3):
        with pytest.raises(DatabaseLost, match=r"3 connections that were given up .* waiting for PgSleep"):
            await leave_at_work()
    await close(await connect(database_url, "relay-other", ""))
