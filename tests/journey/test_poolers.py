"""A real PgBouncer between the processes and PostgreSQL: what works behind it, and what is refused in one line."""

import asyncio
import os
import secrets
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from psycopg import AsyncConnection, sql

from dev.sandbox.ports import free_port
from orders.database import orders_table, postgres, session_probe
from orders.model.errors import StartupError
from relay.database import SessionShared, require_own_session
from tests import warm
from tests.eventually import eventually
from tests.journey.test_refusals import API, CANNOT_START, RELAY, WORKER, start
from tests.orders.conftest import running
from tests.pgbouncer import pgbouncer
from tests.relay.service import RelayProcess, append, becomes, states

ALEMBIC = "alembic"
NEEDED = (
    "synchronous_commit", "idle_in_transaction_session_timeout", "statement_timeout", "lock_timeout", "TimeZone",
    "DateStyle", "default_transaction_isolation", "idle_session_timeout", "jit", "enable_seqscan", "client_encoding",
)  # fmt: skip
IGNORED = {"ignore_startup_parameters": "options"}


async def refused(process: str, url: str, amqp_url: str) -> str:
    """Return the one line with which a process ends."""
    settings = {"DATABASE_URL": url, "AMQP_URL": amqp_url}
    words = ("upgrade", "head") if process == ALEMBIC else ()
    if process == ALEMBIC:
        command = [sys.executable, "-m", ALEMBIC, *words]
        done = await asyncio.to_thread(warm.run, command, env=os.environ | settings)
        code, lines = done.returncode, done.stderr.splitlines()
        assert len(lines) == 1, lines
        line = lines[0]
    else:
        code, line = await asyncio.to_thread(start, process, settings)
    assert code == CANNOT_START
    return line


@pytest.mark.parametrize("process", [API, WORKER, RELAY, ALEMBIC])
async def test_transaction_mode_is_refused(process: str, database_url: str, topology: str, tmp_path: Path) -> None:
    """
    A pooler that lends each session for one transaction is recognised at the start, and no lock is left in it.
    """
    async with pgbouncer(database_url, tmp_path, pool_mode="transaction", **IGNORED) as url:
        assert "pooler in session mode" in await refused(process, url, topology)
        async with await AsyncConnection.connect(database_url) as conn:
            cursor = await conn.execute(
                "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database "
                "WHERE locktype = 'advisory' AND datname = current_database()"
            )
            assert await cursor.fetchone() == (0,)


@pytest.mark.parametrize("process", [API, WORKER, ALEMBIC])
async def test_startup_parameters_that_are_refused(
    process: str, database_url: str, topology: str, tmp_path: Path
) -> None:
    """
    PgBouncer's default settings refuse ours: the line names the two settings to change, at once.
    """
    async with pgbouncer(database_url, tmp_path) as url:
        line = await refused(process, url, topology)
        assert "ignore_startup_parameters = options" in line
        assert "pool_mode = session" in line


async def test_a_relay_behind_the_default_settings(
    conn: AsyncConnection, database_url: str, topology: str, tmp_path: Path
) -> None:
    """
    The relay asks for no settings at the connect, so PgBouncer's default settings let it in.
    """
    async with pgbouncer(database_url, tmp_path) as url:
        relay = RelayProcess(url, topology, tmp_path).start()
        try:
            await append(conn)
            await becomes({"sent": 1}, lambda: states(conn), 20)
        finally:
            relay.kill()


@pytest.mark.parametrize("process", [API, WORKER, RELAY, ALEMBIC])
async def test_options_that_are_dropped(process: str, database_url: str, topology: str, tmp_path: Path) -> None:
    """
    A pooler that drops the options of the URL, which may name the schema, is refused instead of the wrong tables read.
    """
    async with pgbouncer(database_url, tmp_path, pool_mode="session", **IGNORED) as url:
        line = await refused(process, f"{url}?options=-c%20search_path%3Dpublic", topology)
        assert "drops the `options` of DATABASE_URL" in line


@pytest.mark.parametrize("settings", [{}, {"server_round_robin": 1, "min_pool_size": 4}], ids=["lifo", "round robin"])
@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_lent_sessions_of_a_busy_pooler(
    mode: str, settings: dict[str, object], database_url: str, tmp_path: Path
) -> None:
    """
    However the pooler hands its sessions out, and whoever else uses them meanwhile, it is recognised.
    """
    async with (
        pgbouncer(database_url, tmp_path, pool_mode=mode, **IGNORED, **settings) as url,
        AsyncExitStack() as stack,
    ):
        others = [
            await stack.enter_async_context(await AsyncConnection.connect(url, autocommit=True)) for _ in range(4)
        ]

        async def be_busy(conn: AsyncConnection) -> None:
            while True:
                await conn.execute("SELECT pg_sleep(%s)", [secrets.randbelow(5) / 1000], prepare=False)

        busy = [asyncio.create_task(be_busy(conn)) for conn in others]
        for _ in range(10):
            with pytest.raises(StartupError, match="pooler in session mode"):
                await postgres.require_database(url)
            with pytest.raises(SessionShared, match="pooler in session mode"):
                await require_own_session(url)
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)


async def test_settings_hold_in_session_mode(database_url: str, tmp_path: Path) -> None:
    """
    In session mode, where the pooler drops what a session asks for at its start, each session sets it afterwards.
    """
    async with await AsyncConnection.connect(database_url, autocommit=True) as conn:
        for setting, value in (("synchronous_commit", "off"), ("DateStyle", "SQL, DMY"), ("TimeZone", "Asia/Tokyo")):
            statement = sql.SQL("ALTER DATABASE {} SET {} = {}")
            await conn.execute(statement.format(sql.Identifier(conn.info.dbname), sql.SQL(setting), sql.Literal(value)))
    async with pgbouncer(database_url, tmp_path, pool_mode="session", **IGNORED) as url:
        await postgres.require_database(url, orders_table.COLUMNS_ARE_THERE)
        await require_own_session(url)
        found = []
        for each in (database_url, url):
            conn = await postgres.connect(each, "test", idle_session_timeout="3000", **orders_table.BY_INDEX)
            rows = await (await conn.execute("SELECT name, setting FROM pg_settings")).fetchall()
            found.append({name: setting for name, setting in rows if name in NEEDED})
            await postgres.close(conn)
    assert found[0] == found[1]
    assert found[1]["synchronous_commit"] == "on"
    assert len(found[1]) == len(NEEDED)


async def test_session_mode_works(conn: AsyncConnection, database_url: str, topology: str, tmp_path: Path) -> None:
    """
    In session mode an order is placed, carried and done; a worker that is killed there loses its lock.
    """
    async with pgbouncer(database_url, tmp_path, pool_mode="session", **IGNORED) as url, running(url) as api:
        relay = RelayProcess(url, topology, tmp_path).start()
        settings = {"DATABASE_URL": url, "AMQP_URL": topology, "WORKER_PORT": str(free_port())}
        command = [sys.executable, "-m", WORKER]
        environ = os.environ | settings | {"ORDERS_HANDLER": "orders.handlers:do_nothing"}
        worker = await asyncio.create_subprocess_exec(*command, env=environ)
        try:
            placed = await api.place()

            async def is_done() -> bool:
                order = (await api.client.get(f"/orders/{placed['order_id']}")).json()
                return bool(order["status"] == "done")

            await eventually(is_done, 30)
            assert await worker_locks(conn) == 1
            worker.kill()
            await eventually(lambda: no_worker_locks(conn))
        finally:
            relay.kill()
            if worker.returncode is None:
                worker.kill()
            await worker.wait()


async def worker_locks(conn: AsyncConnection) -> int:
    row = await (
        await conn.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2 "
            "AND classid = 'orders'::regclass "
            # Copies of one template share the table's oid.
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    ).fetchone()
    assert row is not None
    return int(row[0])


async def no_worker_locks(conn: AsyncConnection) -> bool:
    return not await worker_locks(conn)


STUBS = {"a lock that all get": "true", "a lock that nobody gets": "false"}


@pytest.mark.parametrize("stub", STUBS)
async def test_locks_that_are_stubs(stub: str, conn: AsyncConnection, database_url: str) -> None:
    """
    A server whose advisory locks lock nothing out, as some that only speak PostgreSQL's protocol, is refused.
    """
    await conn.execute("CREATE SCHEMA stubs")
    await conn.execute(
        f"CREATE FUNCTION stubs.pg_try_advisory_lock(bigint) RETURNS boolean LANGUAGE sql RETURN {STUBS[stub]}".encode()
    )
    database = sql.Identifier(conn.info.dbname)
    await conn.execute(sql.SQL("ALTER DATABASE {} SET search_path = stubs, pg_catalog, public").format(database))

    with pytest.raises(StartupError, match="advisory locks lock nothing out"):
        await postgres.require_database(database_url)
    with pytest.raises(SessionShared, match="advisory locks lock nothing out"):
        await require_own_session(database_url)


async def test_what_only_looks_like_postgresql(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A server that does not know a function of the probe is told as one, and is not waited for.
    """
    monkeypatch.setattr(session_probe, "TAKE", "SELECT pg_no_advisory_lock(%s::bigint)")

    with pytest.raises(StartupError, match="does not know what a session needs"):
        await postgres.require_database(database_url)


async def test_two_servers(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Two connections that led to two servers, in the middle of a failover, are tried again.
    """
    statements = iter([session_probe.TAKE.replace("pg_postmaster_start_time()", "clock_timestamp()")] * 2)
    ask = session_probe._ask

    async def asked(conn: AsyncConnection, statement: Any, key: int) -> tuple[Any, ...]:
        return await ask(conn, next(statements, statement) if statement is session_probe.TAKE else statement, key)

    monkeypatch.setattr(session_probe, "_ask", asked)
    await postgres.require_database(database_url)
    assert next(statements, None) is None
