"""The relay's worst moment: the broker has the message, and the outbox does not know it yet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from dev.sandbox.system import Counts
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey import shoppers
from tests.journey.recorder import Recorder
from tests.journey.trace import Trace, rows

ORDERS = 30


@asynccontextmanager
async def marks_held_back(database_url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """While it is open, rows of the outbox can be claimed but not changed; yields a connection to look on."""
    async with (
        await psycopg.AsyncConnection.connect(database_url) as holding,
        # Of its own: within one transaction pg_stat_activity goes on showing what it showed first.
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as looking,
    ):
        # SHARE lets SELECT FOR UPDATE pass (ROW SHARE) and holds an UPDATE back (ROW EXCLUSIVE).
        await holding.execute("LOCK TABLE outbox IN SHARE MODE")
        yield looking
        await holding.rollback()


async def test_relay_is_killed_between_publish_and_mark(start_system: StartSystem, trace: Trace) -> None:
    """
    What a killed relay had published but not marked is published again, and has its effect once.
    """
    system = start_system(relays=0, settings=trace.settings)
    recorder = Recorder(system.amqp_url)
    await recorder.subscribe()
    accepted = await shoppers.place(system.base_url, ORDERS)

    async with marks_held_back(system.database_url) as conn, recorder.listening():
        system.scale(Counts(relays=1))
        await eventually(lambda: len(recorder.counts()) == ORDERS, 30)

        async def it_waits_to_mark() -> bool:
            # Only a mark waits for the outbox's own lock among the relay's sessions.
            waiting = await rows(
                conn,
                "SELECT query FROM pg_stat_activity JOIN pg_locks USING (pid)"
                " WHERE NOT granted AND application_name LIKE 'relay%' AND query LIKE '%UPDATE outbox%'"
                " AND datname = current_database()",
            )
            return len(waiting) > 0

        await eventually(it_waits_to_mark)
        relay = system.process("relay-1")
        relay.kill()
        # The mark was sent together with its commit: once it may go on, the server would finish it without the relay.
        await conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'relay' AND datname = current_database()"
        )

    await trace.check(system, accepted, recorder)
    assert relay.starts >= 2
    repeated = [event_id for event_id, times in recorder.counts().items() if times > 1]
    assert len(repeated) >= ORDERS, "the relay was not killed where it hurts"


async def test_relay_is_killed_again_and_again(start_system: StartSystem, trace: Trace) -> None:
    """
    Two relays, one of which is killed every moment under load, lose nothing and keep each key's order.
    """
    system = start_system(relays=2, settings=trace.settings)
    recorder = Recorder(system.amqp_url)
    await recorder.subscribe()
    load = shoppers.Shoppers(system.base_url)

    async with load.shopping():
        for kill in range(6):
            await load.go_on(30)
            system.process(f"relay-{kill % 2 + 1}").kill()

    await trace.check(system, load.accepted, recorder)
    assert load.answers.keys() == {201}, "the relay's death is nothing to the clients"
