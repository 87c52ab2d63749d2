"""Every call to PostgreSQL ends, whatever the server does."""

import asyncio
import contextlib
import resource
import socket
import time
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, sql
from psycopg.pq import TransactionStatus

from dev.sandbox.servers import Servers
from dev.sandbox.wire import Wire
from orders.database import postgres
from orders.model.errors import StartupError
from orders.runtime.timeouts import CONNECT_SECONDS
from tests import places
from tests.eventually import eventually


async def show(conn: AsyncConnection, setting: str) -> str:
    row = await (await conn.execute("SELECT current_setting(%s)", [setting])).fetchone()
    assert row is not None
    return str(row[0])


async def test_every_session_is_bounded(database_url: str) -> None:
    """
    A session commits durably, and loses its locks when its client is silent, whatever the server's defaults are.
    """
    conn = await postgres.connect(database_url, "orders-test", idle_session_timeout="3000")

    assert await show(conn, "application_name") == "orders-test"
    assert await show(conn, "synchronous_commit") == "on"
    assert await show(conn, "idle_in_transaction_session_timeout") == "1500ms"
    assert await show(conn, "idle_session_timeout") == "3s"
    assert await show(conn, "lock_timeout") == "5s"
    assert await show(conn, "transaction_isolation") == "read committed"
    assert conn.autocommit
    await postgres.close(conn)


async def test_text_and_times_have_one_form(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Neither the environment nor the URL chooses another encoding or another form of times.
    """
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    monkeypatch.setenv("PGDATESTYLE", "SQL, DMY")
    monkeypatch.setenv("PGTZ", "America/St_Johns")
    conn = await postgres.connect(
        f"{database_url}?client_encoding=LATIN1&options=-c%20intervalstyle%3Diso_8601", "orders-test"
    )

    assert await show(conn, "client_encoding") == "UTF8"
    assert (await show(conn, "datestyle")).startswith("ISO")
    assert await show(conn, "intervalstyle") == "postgres"
    assert await show(conn, "timezone") == "UTC"
    await postgres.close(conn)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_encoding_that_cannot_hold_every_text(servers: Servers, encoding: str) -> None:
    """
    A process does not start on a database whose encoding is not UTF8, and says in one line what to do.
    """
    rest = sql.SQL(" ENCODING {} LOCALE 'C' TEMPLATE template0").format(sql.Literal(encoding))
    needed = f"is {encoding}, and orders need UTF8: .*CREATE DATABASE"
    with places.database(servers, rest=rest) as url, pytest.raises(StartupError, match=needed):
        await postgres.require_database(url)


async def test_options_of_the_url_are_kept(database_url: str) -> None:
    """
    What the URL itself says of the session stays; what we depend on wins over it.
    """
    weaker = "-c%20synchronous_commit%3Doff%20-c%20default_transaction_isolation%3Dserializable"
    url = f"{database_url}?options=-c%20work_mem%3D5MB%20{weaker}"
    conn = await postgres.connect(url, "orders-test")

    assert await show(conn, "work_mem") == "5MB"
    assert await show(conn, "synchronous_commit") == "on"
    assert await show(conn, "transaction_isolation") == "read committed"
    await postgres.close(conn)


async def test_deadline_severs(database_url: str) -> None:
    """
    A query that takes too long ends with the error of a lost connection, in time.
    """
    conn = await postgres.connect(database_url, "orders-test")
    began = time.monotonic()

    with pytest.raises(psycopg.OperationalError), postgres.deadline(conn, 0.2):
        await conn.execute("SELECT pg_sleep(30)")

    assert time.monotonic() - began < 5
    assert conn.closed
    await postgres.close(conn)


async def test_deadline_that_is_kept(database_url: str) -> None:
    """
    A query that is done in time leaves its connection as it was, also after the deadline.
    """
    conn = await postgres.connect(database_url, "orders-test")

    with postgres.deadline(conn, 0.2):
        await conn.execute("SELECT 1")
    await conn.execute("SELECT pg_sleep(0.4)")

    assert not conn.closed
    await postgres.close(conn)


async def test_server_behind_a_dead_network(database_url: str, wire: Wire) -> None:
    """
    On a connection where nothing comes back and nothing breaks, the deadline holds, and so does the close.
    """
    conn = await postgres.connect(wire.url(database_url), "orders-test")
    wire.silence()
    began = time.monotonic()

    with pytest.raises(psycopg.OperationalError), postgres.deadline(conn, 0.2):
        await conn.execute("SELECT 1")
    await postgres.close(conn)

    assert time.monotonic() - began < 5


async def test_server_that_takes_the_connection_and_says_nothing(database_url: str, wire: Wire) -> None:
    """
    A connect ends in time when nobody answers the greeting.
    """
    wire.silence()
    began = time.monotonic()

    with pytest.raises(psycopg.OperationalError):
        await postgres.connect(wire.url(database_url), "orders-test")

    assert time.monotonic() - began < 10 * CONNECT_SECONDS


async def test_second_host_is_tried(database_url: str, wire: Wire) -> None:
    """
    Of several hosts, the first that is there and takes writes is taken.
    """
    wire.cut()
    host = database_url.rpartition("@")[2].partition("/")[0]
    several = database_url.replace(host, f"127.0.0.1:{wire.port},{host}")

    conn = await postgres.connect(several, "orders-test")

    assert (await (await conn.execute("SELECT 1")).fetchone()) == (1,)
    await postgres.close(conn)


async def test_a_silent_host_costs_its_head_start(database_url: str, wire: Wire) -> None:
    """
    Hosts that take a connection and say nothing hold nobody up: the next ones are asked, too, and none is left open.
    """
    wire.silence()
    host = database_url.rpartition("@")[2].partition("/")[0]
    silent = f"127.0.0.1:{wire.port}"

    async def connected() -> AsyncConnection | None:
        with contextlib.suppress(psycopg.OperationalError):  # not in time, on a machine that is busy
            return await postgres.connect(database_url.replace(host, f"{silent},{silent},{host}"), "orders-test")
        return None

    conn = await eventually(connected, 30)
    assert conn is not None

    assert conn.info.port == int(host.partition(":")[2])
    assert wire.accepted >= 2
    await postgres.close(conn)
    wire.resume()  # it notices who has left only when it passes things on
    await eventually(lambda: wire.open_ends == 0)


async def test_every_address_of_a_name_is_asked(database_url: str, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A name may have several addresses, and another name none; the first that is there and takes writes is taken.
    """
    addresses: dict[str, list[str]] = {"old-primary": [], "primary": ["127.0.0.9", "127.0.0.1"]}

    async def look_up(host: str, port: str, **how: Any) -> list[Any]:
        if not addresses[host]:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port))) for address in addresses[host]]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    host = database_url.rpartition("@")[2].partition("/")[0]
    url = database_url.replace(host, f"old-primary:{wire.port},primary:{wire.port}")

    conn = await postgres.connect(url, "orders-test")
    assert (conn.info.host, conn.info.hostaddr) == ("primary", "127.0.0.1")
    await postgres.close(conn)

    addresses["primary"] = []
    with pytest.raises(psycopg.OperationalError, match="failed to resolve host 'primary'"):
        await postgres.connect(url, "orders-test")


@pytest.mark.parametrize(
    ("servers", "error"),
    [
        ("a:1,b:2,c:3/orders?port=1,2", "2 ports for 3 hosts"),
        ("/orders?host=/nowhere/at/all", "/nowhere/at/all"),
        ("/orders?hostaddr=127.0.0.1&port=1", "port 1 failed"),
    ],
)
async def test_a_url_that_leads_nowhere(servers: str, error: str) -> None:
    """
    Whatever a URL names its servers by, one that is not there is an error of the database like any other.
    """
    with pytest.raises(psycopg.OperationalError, match=error):
        await postgres.connect(f"postgresql://orders@{servers}", "orders-test")


async def test_close_of_a_connection_that_was_cut(database_url: str, wire: Wire) -> None:
    """
    Close and sever are harmless on what is gone already.
    """
    conn = await postgres.connect(wire.url(database_url), "orders-test")
    wire.cut()

    with pytest.raises(psycopg.OperationalError):
        await conn.execute("SELECT 1")
    await postgres.close(conn)
    postgres.sever(conn)
    await postgres.close(conn)
    await postgres.close(None)


async def test_sever_needs_no_descriptor(database_url: str) -> None:
    """
    With every descriptor in use a deadline still ends a call.
    """
    conn = await postgres.connect(database_url, "orders-test")
    waiting = asyncio.create_task(conn.execute("SELECT pg_sleep(30)"))
    await eventually(lambda: conn.info.transaction_status == TransactionStatus.ACTIVE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        postgres.sever(conn)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    with pytest.raises(psycopg.OperationalError):
        async with asyncio.timeout(10):
            await waiting
    await postgres.close(conn)


async def test_severed_session_gives_its_locks_back(database_url: str, conn: AsyncConnection) -> None:
    """
    The server notices that a severed client is gone: what it had locked is free.
    """
    holder = await postgres.connect(database_url, "orders-test")
    await holder.execute("SELECT pg_advisory_lock(7)")

    await postgres.close(holder)

    async def lock_is_free() -> bool:
        return await (await conn.execute("SELECT pg_try_advisory_lock(7)")).fetchone() == (True,)

    await eventually(lock_is_free)


@pytest.mark.parametrize("statement", ["SELECT no_such_column FROM orders", "SELECT 1 FROM no_such_table"])
async def test_schema_that_lacks_something(database_url: str, statement: str) -> None:
    """
    What is not there is named, with the command that makes it.
    """
    conn = await postgres.connect(database_url, "orders-test")

    with pytest.raises(StartupError, match=r"no_such_.*alembic upgrade head"):
        await postgres.require(conn, "SELECT 1 FROM orders LIMIT 0", statement)
    await postgres.close(conn)


async def test_many_deadlines_leave_nothing_behind(database_url: str) -> None:
    """
    A deadline that was kept keeps no timer.
    """
    conn = await postgres.connect(database_url, "orders-test")
    for _ in range(3):
        with postgres.deadline(conn, 0.05):
            await conn.execute("SELECT 1")
    await asyncio.sleep(0)
    await conn.execute("SELECT pg_sleep(0.1)")

    assert not conn.closed
    await postgres.close(conn)
