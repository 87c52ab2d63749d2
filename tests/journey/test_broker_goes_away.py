"""The broker is stopped under load, and comes back."""

import asyncio

import httpx

from dev.sandbox.servers import Servers
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey import shoppers
from tests.journey.recorder import Recorder
from tests.journey.trace import Trace


async def test_broker_is_stopped_and_started_under_load(
    own_servers: Servers, start_own_system: StartSystem, trace: Trace
) -> None:
    """
    Without the broker orders are taken and the backlog is told; with it back, all of them are done by themselves.
    """
    system = start_own_system(settings=trace.settings)
    recorder = Recorder(system.amqp_url)
    await recorder.subscribe()
    load = shoppers.Shoppers(system.base_url)
    relay = system.relay_urls[0]

    async def backlog() -> int:
        status = (await shoppers.get(f"{relay}/status")).json()
        assert status["broker"] != "connected"
        return int(status["backlog"])

    async with load.shopping():
        await load.go_on(50)
        await asyncio.to_thread(own_servers.rabbitmq.stop)

        async def relay_is_live_but_not_ready() -> bool:
            ready = await shoppers.get(f"{relay}/health/ready")
            live = await shoppers.get(f"{relay}/health/live")
            return (ready.status_code, live.status_code) == (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.OK)

        await eventually(relay_is_live_but_not_ready, 20)
        early = await eventually(backlog, 10)

        async def backlog_has_grown() -> bool:
            return await backlog() > early

        await eventually(backlog_has_grown, 10)
        await load.go_on(50)
        await asyncio.to_thread(own_servers.rabbitmq.start)

        async def relay_and_worker_are_ready() -> bool:
            urls = (relay, *system.worker_urls)
            return {200} == {(await shoppers.get(f"{url}/health/ready")).status_code for url in urls}

        await eventually(relay_and_worker_are_ready, 20)

    await trace.check(system, load.accepted, recorder)
    assert load.answers.keys() == {201}, "the broker's absence is nothing to the clients"
    assert load.errors == []
    assert {1} == {process.starts for process in system.processes}, "nobody had to be started again"
