"""The relay as a component: its schema, its imports, a second service, its start and its end."""

import ast
import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import AsyncConnection, sql

from dev.sandbox.servers import Servers
from tests import places, warm
from tests.relay.conftest import StartRelay
from tests.relay.service import ROOT, RelayProcess, append, becomes, broker, operator, recording, states

ALLOWED = {"aiormq", "msgspec", "pamqp", "prometheus_client", "psycopg", "yarl", "relay"}  # pamqp, yarl: of aiormq


def test_imports() -> None:
    """
    The relay imports the standard library and its four packages, and nothing of any service.
    """
    for path in (ROOT / "relay").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            tops = {name.partition(".")[0] for name in names}
            assert tops <= ALLOWED | sys.stdlib_module_names, f"{path.name} imports {tops}"


def test_schema_is_the_migration() -> None:
    """
    `relay schema` prints what the migrations of the outbox run, statement by statement.
    """
    statements = [
        statement
        for name in ("0002_outbox", "0005_witness", "0007_detached", "0010_definer_path", "0012_turns")
        for node in ast.parse((ROOT / "migrations" / "versions" / f"{name}.py").read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SCHEMA"
        for statement in ast.literal_eval(node.value)
    ]
    printed = (ROOT / "relay" / "schema.sql").read_text()

    assert printed.partition("\n\n")[2] == "\n\n".join(each.strip() + ";" for each in statements) + "\n"


async def test_schema_serves_a_writer_with_few_rights(servers: Servers) -> None:
    """
    What `relay schema` prints loads into an empty database, and its writer may insert and nothing else.
    """
    with places.database(servers) as url:
        code, printed, _ = await asyncio.to_thread(operator, url, "schema", "--writer", "pg_monitor")
        assert code == 0
        async with await AsyncConnection.connect(url, autocommit=True) as conn:
            await conn.execute(printed.encode())
            await conn.execute("SET ROLE pg_monitor")
            await conn.execute(
                "INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, headers, body) "
                "VALUES (gen_random_uuid(), 'k', 'x', 'y', true, 'text/plain', '{}', '')"
            )
            await conn.execute("SELECT outbox_add_partitions(11)")
            refused = None
            try:
                await conn.execute("UPDATE outbox SET state = 'sent'")
            except psycopg.errors.InsufficientPrivilege as error:
                refused = error
            assert refused is not None


@pytest.fixture
def role(servers: Servers) -> Iterator[str]:
    """A name of a role that does not exist; removed afterwards."""
    name = f"writer's {secrets.token_hex(6)}"
    yield name
    with psycopg.connect(servers.database_url, autocommit=True) as administrator:
        administrator.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))


@pytest.mark.parametrize("exists", [False, True])
async def test_schema_creates_a_writer_that_is_missing(servers: Servers, role: str, exists: bool) -> None:
    """
    `relay schema --writer` loads whether or not the role exists, and the role may insert then.
    """
    with places.database(servers) as url:
        async with await AsyncConnection.connect(url, autocommit=True) as conn:
            if exists:
                await conn.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
            _, printed, _ = await asyncio.to_thread(operator, url, "schema", "--writer", role)
            await conn.execute(printed.encode())
            await conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
            await conn.execute(
                "INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, body) "
                "VALUES (gen_random_uuid(), 'k', 'x', 'y', true, 'text/plain', '')"
            )


@pytest.mark.parametrize("own", [None, "5s"])
async def test_schema_bounds_the_idle_transactions_of_a_writer(servers: Servers, role: str, own: str | None) -> None:
    """
    `relay schema --writer` sets the role's idle_in_transaction_session_timeout, unless it has one.
    """
    with places.database(servers) as url:
        async with await AsyncConnection.connect(url, autocommit=True) as conn:
            name = sql.Identifier(role)
            await conn.execute(sql.SQL("CREATE ROLE {}").format(name))
            if own is not None:
                setting = sql.SQL("ALTER ROLE {} SET idle_in_transaction_session_timeout = {}")
                await conn.execute(setting.format(name, sql.Literal(own)))
            _, printed, _ = await asyncio.to_thread(operator, url, "schema", "--writer", role)
            await conn.execute(printed.encode())
            cursor = await conn.execute(
                "SELECT unnest(setconfig) FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = setrole "
                "WHERE rolname = %s",
                [role],
            )
            assert await cursor.fetchall() == [(f"idle_in_transaction_session_timeout={own or '60s'}",)]


async def test_schema_loads_whole_or_not_at_all(servers: Servers) -> None:
    """
    A writer that cannot be created leaves no table behind; without a writer, no grants are printed.
    """
    with places.database(servers) as url:
        async with await AsyncConnection.connect(url, autocommit=True) as conn:
            _, printed, _ = await asyncio.to_thread(operator, url, "schema", "--writer", "pg_reserved")
            with pytest.raises(psycopg.errors.ReservedName):
                await conn.execute(printed.encode())
            await conn.execute("ROLLBACK")
            _, printed, _ = await asyncio.to_thread(operator, url, "schema")
            assert "GRANT" not in printed
            await conn.execute(printed.encode())


DECLARED = {
    "RELAY_EXCHANGES": "sensors",
    "RELAY_REQUIRED_QUEUES": "readings",
    "RELAY_REQUIRED_ROUTES": "sensors/sensor.measured, alarms/alarm.raised",
    "RELAY_START_SECONDS": "20",
}


async def declare(amqp_url: str, **settings: str) -> tuple[int, str, str]:
    """Run `relay declare`; return the exit code, the output and the errors."""
    environ = {"PATH": os.environ["PATH"], "AMQP_URL": amqp_url} | DECLARED | settings
    command = [sys.executable, "-m", "relay", "declare"]
    done = await asyncio.to_thread(warm.run, command, env=environ)
    return done.returncode, done.stdout, done.stderr


async def test_declare_makes_what_is_missing(amqp_url: str) -> None:
    """
    `relay declare` needs no database; run again it changes nothing, and each route leads to the queue.
    """
    for _ in range(2):
        code, said, errors = await declare(amqp_url)
        assert (code, errors) == (0, "")
        assert said.splitlines() == [
            "exchange 'sensors' is there",
            "queue 'readings' is there, bound to sensors/sensor.measured, alarms/alarm.raised",
        ]

    async with broker(amqp_url) as channel, recording(amqp_url, "readings") as recorder:
        for exchange, routing_key in (("sensors", "sensor.measured"), ("alarms", "alarm.raised"), ("sensors", "else")):
            await channel.basic_publish(routing_key.encode(), exchange=exchange, routing_key=routing_key)
        await becomes([b"sensor.measured", b"alarm.raised"], lambda: asyncio.sleep(0, recorder.bodies()))


async def test_declare_leaves_what_is_there(amqp_url: str) -> None:
    """
    An exchange of another type and a queue with arguments of its own stay; a queue that may lose messages is refused.
    """
    async with broker(amqp_url) as channel:
        await channel.exchange_declare("sensors", exchange_type="direct", durable=True)
        await channel.queue_declare(
            "readings", durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 7}
        )
        await channel.queue_declare("classic", durable=True)

        assert (await declare(amqp_url))[0] == 0
        await channel.exchange_declare("sensors", exchange_type="direct", durable=True)
        code, _, line = await declare(amqp_url, RELAY_REQUIRED_QUEUES="classic")
        assert code == 1
        assert line.startswith("relay declare: queue 'classic' is no quorum queue, and may lose what it confirmed: ")
        assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "code", "line"),
    [
        ({"RELAY_REQUIRED_ROUTES": ""}, 2, "relay: RELAY_REQUIRED_ROUTES: it is not set, so the queue"),
        ({"RELAY_REQUIRED_QUEUES": "a,b"}, 2, "relay: RELAY_REQUIRED_QUEUES: expected the one queue"),
        (dict.fromkeys(DECLARED, ""), 2, "relay: RELAY_EXCHANGES, RELAY_REQUIRED_QUEUES: neither is set"),
        (
            {"AMQP_URL": "amqp://127.0.0.1:1", "RELAY_START_SECONDS": "0.5"},
            1,
            "relay declare: RabbitMQ did not answer within 0.5 s",
        ),
    ],
)
async def test_declare_refuses_in_one_line(settings: dict[str, str], code: int, line: str) -> None:
    """
    Settings that do not say what to declare, and a broker that is away, end it with one line.
    """
    ended, said, errors = await declare("amqp://127.0.0.1:1", **settings)

    assert (ended, said) == (code, "")
    assert errors.startswith(line)
    assert errors.count("\n") == 1


async def test_a_second_service(
    conn: AsyncConnection, database_url: str, topology: str, start_relay: StartRelay
) -> None:
    """
    A service of thirty lines, without the orders package, has its events carried by the same relay, in order.
    """
    async with broker(topology) as channel:
        await channel.exchange_declare("sensors", exchange_type="topic", durable=True)
        await channel.queue_declare("readings", durable=True, arguments={"x-queue-type": "quorum"})
        await channel.queue_bind("readings", "sensors", "sensor.#")
    start_relay()
    for celsius in ("21.5", "22.0"):
        environ = {**os.environ, "DATABASE_URL": database_url}
        command = [sys.executable, str(ROOT / "examples" / "second_service.py"), "greenhouse-1", celsius]
        await asyncio.to_thread(subprocess.run, command, env=environ, check=True, timeout=30)
    await becomes({"sent": 2}, lambda: states(conn), 20)

    async with recording(topology, "readings") as recorder:
        await becomes(
            [b'{"sensor": "greenhouse-1", "celsius": 21.5}', b'{"sensor": "greenhouse-1", "celsius": 22.0}'],
            lambda: asyncio.sleep(0, recorder.bodies()),
        )


def test_refusals_are_one_line(database_url: str, amqp_url: str, tmp_path: Path) -> None:
    """
    A bad setting exits with 2, a missing topology with 1, each with the one line that says how to mend it.
    """
    bad = RelayProcess(database_url, amqp_url, tmp_path, batch_rows="many").start()
    missing = RelayProcess(database_url, amqp_url, tmp_path).start()

    assert (bad.wait(), missing.wait()) == (2, 1)
    assert bad.log.read_text() == "relay: RELAY_BATCH_ROWS: expected `int`, got `str`\n"
    assert missing.log.read_text().startswith("relay: exchange 'orders' does not exist")
    assert missing.log.read_text().count("\n") == 1


async def test_sigterm_ends_it(conn: AsyncConnection, start_relay: StartRelay) -> None:
    """
    A signal ends the relay with its work recorded, well within the grace.
    """
    relay = start_relay()
    await relay.ready()
    await append(conn)
    await becomes({"sent": 1}, lambda: states(conn))

    assert await asyncio.to_thread(relay.stop, 12) == 0
