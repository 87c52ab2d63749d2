"""Servers that hand over to another, and relays that do."""

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import AsyncConnection, sql

from dev.chaos.amqp_wire import BASIC_ACK, amqp_wire_to
from dev.sandbox.servers import Servers
from relay.database import DatabaseLost, connect, deadline
from relay.outbox_table import SESSION
from tests.eventually import eventually
from tests.relay.conftest import StartRelay
from tests.relay.service import RelayProcess, all_settled, append, append_many, becomes, states
from tests.relay.wire import Wire
from tests.warm import upgrade

USER = "failover"


async def execute(servers: Servers, *statements: sql.SQL | sql.Composed) -> None:
    """Run statements as the owner of the server, also while it takes no writes."""
    async with await AsyncConnection.connect(
        servers.database_url, autocommit=True, options="-c default_transaction_read_only=off"
    ) as conn:
        for statement in statements:
            await conn.execute(statement)


@contextlib.asynccontextmanager
async def two_hosts(first: Servers, second: Servers) -> AsyncIterator[tuple[str, list[str]]]:
    """One URL with two servers in it, and the URL of each."""
    name, password = f"test_{secrets.token_hex(6)}", secrets.token_hex(8)
    user, database = sql.Identifier(USER), sql.Identifier(name)
    hosts = [urlsplit(each.database_url).netloc.rpartition("@")[2] for each in (first, second)]
    for each in (first, second):
        await execute(
            each,
            sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD {}").format(user, sql.Literal(password)),
            sql.SQL("CREATE DATABASE {}").format(database),
        )
    urls = [f"postgresql://{USER}:{password}@{host}/{name}" for host in hosts]
    try:
        for url in urls:
            upgrade(url)
        yield f"postgresql://{USER}:{password}@{','.join(hosts)}/{name}", urls
    finally:
        for each in (first, second):
            await execute(each, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))
            await execute(each, sql.SQL("DROP ROLE {}").format(user))


async def demote(servers: Servers) -> None:
    """Take no writes any more, and keep the connections."""
    await execute(
        servers, sql.SQL("ALTER SYSTEM SET default_transaction_read_only = on"), sql.SQL("SELECT pg_reload_conf()")
    )


async def promote(servers: Servers) -> None:
    """Take writes again."""
    await execute(
        servers, sql.SQL("ALTER SYSTEM RESET default_transaction_read_only"), sql.SQL("SELECT pg_reload_conf()")
    )


async def test_a_demoted_database_is_left(
    own_servers: Servers, servers: Servers, topology: str, tmp_path: Path
) -> None:
    """
    A server that takes no writes any more, but keeps its connections, is left for the next host of the URL, also by a
    relay that was idle; nobody restarts it.
    """
    async with two_hosts(own_servers, servers) as (both, (old, new)):
        relay = RelayProcess(both, topology, tmp_path).start()
        try:
            await relay.ready()
            async with await AsyncConnection.connect(old, autocommit=True) as conn:
                await append_many(conn, 20, keys=5)
                await becomes({"sent": 20}, lambda: states(conn))
            await demote(own_servers)
            async with await AsyncConnection.connect(new, autocommit=True) as conn:
                await append_many(conn, 20, keys=5)
                await becomes({"sent": 20}, lambda: states(conn), 20)
            await becomes("connected", lambda: relay.says("database"))
            await becomes(0, lambda: relay.says("backlog"))
            assert "takes no writes any more" in relay.log.read_text()
        finally:
            await promote(own_servers)
            relay.kill()


async def test_25006_is_a_lost_database(database_url: str) -> None:
    """
    A write that a demoted server refuses is the server's fault: the connection is given up, the relay is not.
    """
    conn = await connect(database_url, "test", SESSION)
    await conn.execute("SET default_transaction_read_only = on")
    with pytest.raises(DatabaseLost) as error, deadline(conn, 5):
        await conn.execute("UPDATE outbox_mark SET mark = mark")
    await conn.close()

    assert isinstance(error.value.__cause__, psycopg.errors.ReadOnlySqlTransaction)


async def test_the_next_broker_is_taken(
    conn: AsyncConnection, database_url: str, topology: str, tmp_path: Path
) -> None:
    """
    When the broker's address is gone for good, the next one of AMQP_URL is taken.
    """
    async with Wire(topology).open() as second, contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(Wire(topology).open())
        relay = RelayProcess(database_url, f"{first.url},{second.url}", tmp_path).start()
        try:
            await append(conn)
            await becomes({"sent": 1}, lambda: states(conn), 20)
            assert first.connected
            assert not second.connected
            await stack.aclose()
            await append(conn)
            await becomes({"sent": 2}, lambda: states(conn), 20)
            assert second.connected
        finally:
            relay.kill()


async def test_a_broker_that_never_confirms_is_left(
    conn: AsyncConnection, database_url: str, topology: str, tmp_path: Path
) -> None:
    """
    A node that its cluster has lost answers everything but publishes: the rows go over the next one of AMQP_URL.
    """
    async with amqp_wire_to(topology) as lost:
        lost.lose(BASIC_ACK)
        urls = f"{lost.url(topology)},{topology}"
        relay = RelayProcess(database_url, urls, tmp_path, confirm_seconds=1).start()
        try:
            await append_many(conn, 20, keys=5)
            await becomes({"sent": 20}, lambda: states(conn), 30)
            assert "trying the next broker" in relay.log.read_text()
        finally:
            relay.kill()


async def waits_for_confirms(conn: AsyncConnection, pid: int) -> bool:
    """Whether this relay's session holds shards while it only proves that its claim stands."""
    row = await (
        await conn.execute(
            "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE pid = %s "
            "AND locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted "
            "AND state = 'idle in transaction' AND query = 'SELECT 1'",
            (pid,),
        )
    ).fetchone()
    assert row is not None
    return bool(row[0])


Fault = Callable[[RelayProcess, Wire], None]

FAULTS: dict[str, Fault] = {
    "killed": lambda relay, database: relay.kill(),
    "stopped": lambda relay, database: relay.signal(signal.SIGSTOP),
    "cut off": lambda relay, database: database.hold(),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_shards_move_by_themselves(
    fault: str,
    conn: AsyncConnection,
    database_url: str,
    topology: str,
    tmp_path: Path,
    start_relay: StartRelay,
    record_property: Callable[[str, object], None],
) -> None:
    """
    A relay that is killed, stopped or cut off in the middle of a claim loses its shards, and another sends the rows.
    """
    async with Wire(database_url).open() as database, Wire(topology).open() as broker:
        victim = RelayProcess(database.url, broker.url, tmp_path).start()
        try:
            await victim.ready()
            (pid,) = await eventually(lambda: sessions_of_relays(conn), 20)
            other = start_relay()
            await becomes(2, lambda: other.says("relays"), 20)
            broker.hold()  # no confirm comes to the victim, so its claim stands

            async def the_victim_has_rows() -> bool:
                await append_many(conn, 20, keys=20)
                return await waits_for_confirms(conn, pid)

            await eventually(the_victim_has_rows, 20)
            assert not await all_settled(conn)

            began = time.monotonic()
            await asyncio.to_thread(FAULTS[fault], victim, database)
            await becomes({"sent"}, lambda: kinds(conn), 30)
            record_property("seconds_until_another_had_sent_all", round(time.monotonic() - began, 2))

            assert not await waits_for_confirms(conn, pid)
        finally:
            victim.kill()


async def sessions_of_relays(conn: AsyncConnection) -> list[int]:
    """The server processes of the sessions that claim."""
    rows = await (
        await conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'relay' AND datname = current_database()"
        )
    ).fetchall()
    return [row[0] for row in rows]


async def kinds(conn: AsyncConnection) -> set[str]:
    """The states that there are."""
    return set(await states(conn))


async def test_a_rate_is_kept_and_starves_nobody(conn: AsyncConnection, start_relay: StartRelay) -> None:
    """
    However often it is woken, a relay with a rate lets no more out in any second than the rate, one portion for each
    of its edges, and one that was late; and its session lives.
    """
    relay = start_relay(rate=40)
    await relay.ready()
    await append_many(conn, 120, keys=120)

    async def all_sent() -> bool:
        await conn.execute("NOTIFY outbox")
        return await states(conn) == {"sent": 120}

    await eventually(all_sent, 60)
    rows = await (await conn.execute("SELECT extract(epoch FROM settled_at)::float8 FROM outbox ORDER BY 1")).fetchall()
    times = [row[0] for row in rows]
    busiest = max(sum(at <= each < at + 1 for each in times) for at in times)

    assert busiest <= 40 + 2 * 10
    assert await relay.metric("relay_database_lost_total") == 0


async def test_a_rate_below_the_session_s_patience(conn: AsyncConnection, start_relay: StartRelay) -> None:
    """
    A relay that has to wait for longer than the server has patience with an idle session keeps it all the same.
    """
    relay = start_relay(rate=0.3)
    await relay.ready()
    await append_many(conn, 2, keys=2)
    await becomes({"sent": 2}, lambda: states(conn), 30)

    assert await relay.metric("relay_database_lost_total") == 0
