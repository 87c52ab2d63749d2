"""What severed connections leave at work in the server is bounded."""

import asyncio

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from orders.database import postgres, severing
from tests.eventually import eventually

STUBBORN = "SELECT pg_sleep(600)"
OURS = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()"


async def leave_at_work(database_url: str, name: str) -> None:
    """Open a connection and sever it in the middle of a call, whose backend does not notice."""
    conn = await postgres.connect(database_url, name, client_connection_check_interval="0")
    with pytest.raises(psycopg.OperationalError), postgres.deadline(conn, 0.1):
        await conn.execute(STUBBORN)
    await postgres.close(conn)


async def pids(conn: AsyncConnection, name: str) -> list[int]:
    return [pid for (pid,) in await (await conn.execute(OURS, [name])).fetchall()]


async def test_severed_connections_that_stand_are_bounded(database_url: str, conn: AsyncConnection) -> None:
    """
    No other connection is opened for a purpose whose severed ones stand, until one of them is gone; others are opened.
    """
    for _ in range(severing.MOST_LEFT):
        await leave_at_work(database_url, "orders-stuck")

    for _ in range(20):
        with pytest.raises(psycopg.OperationalError, match=r"3 connections that were given up .* waiting for PgSleep"):
            await leave_at_work(database_url, "orders-stuck")
    await eventually(lambda: pids_are(conn, "orders-stuck", severing.MOST_LEFT))
    await postgres.close(await postgres.connect(database_url, "orders-other"))

    [one, *_] = await pids(conn, "orders-stuck")
    await conn.execute("SELECT pg_terminate_backend(%s)", [one])

    async def opened() -> AsyncConnection | None:
        try:
            return await postgres.connect(database_url, "orders-stuck")
        except psycopg.OperationalError:
            return None

    again = await eventually(opened)
    assert again is not None
    await postgres.close(again)


async def pids_are(conn: AsyncConnection, name: str, many: int) -> bool:
    return len(await pids(conn, name)) == many


async def test_lost_connections_that_are_gone(database_url: str, conn: AsyncConnection) -> None:
    """
    After any number of connections that were lost, and whose backends are gone, the next one is opened at once.
    """
    for _ in range(3 * severing.MOST_LEFT):
        lost = await postgres.connect(database_url, "orders-lost")
        await conn.execute("SELECT pg_terminate_backend(%s, 5000)", [lost.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            await lost.execute("SELECT 1")
        await postgres.close(lost)
    await postgres.close(await postgres.connect(database_url, "orders-lost"))


async def test_pid_that_has_another_session(database_url: str, conn: AsyncConnection) -> None:
    """
    A backend at work on what it began after a connection was left is not what that connection left.
    """
    strangers = [await postgres.connect(database_url, "orders-strangers") for _ in range(severing.MOST_LEFT)]
    purpose = severing.Purpose()
    for stranger in strangers:
        purpose.leave(stranger.info.backend_pid)
    await conn.execute("SELECT pg_sleep(0.2)")
    at_work = [asyncio.create_task(stranger.execute(STUBBORN)) for stranger in strangers]
    await eventually(lambda: all(each.info.transaction_status == TransactionStatus.ACTIVE for each in strangers))

    await purpose.admit(conn)

    for stranger in strangers:
        postgres.sever(stranger)
    await asyncio.gather(*at_work, return_exceptions=True)
    for stranger in strangers:
        await postgres.close(stranger)


async def test_statement_of_a_severed_connection_ends(database_url: str, conn: AsyncConnection) -> None:
    """
    The server ends a statement, and frees its locks, soon after its connection was severed.
    """
    for _ in range(2 * severing.MOST_LEFT):
        severed = await postgres.connect(database_url, "orders-long", statement_timeout="0")
        with pytest.raises(psycopg.OperationalError), postgres.deadline(severed, 0.1):
            await severed.execute("SELECT pg_advisory_lock(7), pg_sleep(600)")
        await postgres.close(severed)
        await eventually(lambda: pids_are(conn, "orders-long", 0))
