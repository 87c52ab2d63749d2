"""Servers and relays that go away and come back."""

import signal
from pathlib import Path

from psycopg import AsyncConnection

from dev.sandbox.servers import Servers
from tests import places
from tests.relay.conftest import StartRelay
from tests.relay.service import RelayProcess, append_many, becomes, states
from tests.warm import declare_topology, upgrade


async def test_servers_go_and_come_back(own_servers: Servers, tmp_path: Path) -> None:
    """
    Without the broker the relay is live, not ready, and its backlog grows; without the database likewise; when they
    are back everything is sent, nothing is blocked, and nobody restarted it.
    """
    with places.database(own_servers) as database_url, places.vhost(own_servers) as amqp_url:
        upgrade(database_url)
        declare_topology(amqp_url)
        relay = RelayProcess(database_url, amqp_url, tmp_path).start()
        try:
            await relay.ready()
            own_servers.rabbitmq.kill()
            await becomes(503, lambda: relay.code("/health/ready"), 20)
            async with await AsyncConnection.connect(database_url, autocommit=True) as conn:
                await append_many(conn, 50, keys=5)
                await becomes(50, lambda: relay.says("backlog"), 20)
            assert await relay.says("broker") == "disconnected"
            assert await relay.code("/health/live") == 200
            own_servers.rabbitmq.start()
            await becomes(0, lambda: relay.says("backlog"), 60)

            own_servers.postgres.kill()
            await becomes("disconnected", lambda: relay.says("database"), 20)
            assert await relay.code("/health/live") == 200
            own_servers.postgres.start()
            async with await AsyncConnection.connect(database_url, autocommit=True) as conn:
                await append_many(conn, 50, keys=5)
                await becomes({"sent": 100}, lambda: states(conn), 30)
            assert await relay.says("blocked_keys") == 0
        finally:
            relay.kill()


async def test_a_stopped_relay_is_relieved(conn: AsyncConnection, start_relay: StartRelay) -> None:
    """
    A relay that is stopped in the middle of its work loses its shards to the other, and records nothing when it is
    back.
    """
    stopped, other = start_relay(), start_relay()
    for relay in (stopped, other):
        await relay.ready()
    await append_many(conn, 2000, keys=200)
    stopped.signal(signal.SIGSTOP)
    await append_many(conn, 500, keys=200)

    await becomes({"sent": 2500}, lambda: states(conn), 30)
    stopped.signal(signal.SIGCONT)

    await becomes(200, lambda: stopped.code("/health/ready"), 20)
    assert await states(conn) == {"sent": 2500}
