"""The database is restarted under load."""

import asyncio

from dev.sandbox.servers import Servers
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey import shoppers
from tests.journey.recorder import Recorder
from tests.journey.trace import Trace


async def test_database_is_restarted_under_load(
    own_servers: Servers, start_own_system: StartSystem, trace: Trace
) -> None:
    """
    Clients who ask again with their key get one order each; every order is done; no process had to be started again.
    """
    system = start_own_system(settings=trace.settings)
    recorder = Recorder(system.amqp_url)
    await recorder.subscribe()
    load = shoppers.Shoppers(system.base_url)

    async with load.shopping():
        await load.go_on(50)
        await asyncio.to_thread(own_servers.postgres.stop)
        await eventually(lambda: load.answers[503] > 0, 10)
        await asyncio.to_thread(own_servers.postgres.start)
        await load.go_on(50)

    await trace.check(system, load.accepted, recorder)
    assert len(set(load.accepted)) == load.keys, "one order for each key"
    assert load.answers.keys() == {201, 503}
    assert load.errors == []
    assert {1} == {process.starts for process in system.processes}


async def test_database_is_killed_under_load(own_servers: Servers, start_own_system: StartSystem, trace: Trace) -> None:
    """
    SIGKILL of PostgreSQL takes back nothing that was answered with yes, and no event comes without its order.
    """
    system = start_own_system(settings=trace.settings)
    load = shoppers.Shoppers(system.base_url)

    async with load.shopping():
        await load.go_on(50)
        await asyncio.to_thread(own_servers.postgres.kill)
        await asyncio.to_thread(own_servers.postgres.start)
        await load.go_on(50)

    await trace.check(system, load.accepted)
    assert len(set(load.accepted)) == load.keys, "one order for each key"
