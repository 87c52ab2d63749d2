"""A broker that is away for long, in every way it can be, while writers go on: nothing is lost, and nobody helps."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from psycopg import AsyncConnection

from dev.sandbox.servers import Servers
from tests import places
from tests.eventually import eventually
from tests.relay.service import RelayProcess, append, becomes, broker, keys_by_event, recording, states
from tests.warm import declare_topology, upgrade

# `JOURNEYS=long` has each outage last: five minutes in all.
LONG = os.environ.get("JOURNEYS") == "long"
SECONDS = 60 if LONG else 2
KEYS = 100
WRITERS = 3
ROUTING_KEYS = ("order.placed", "order.redriven")


class Writers:
    """Write numbered rows of some keys, each writer those of its own, until told to stop."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._stop = asyncio.Event()
        self.written: dict[str, int] = {}

    async def write(self, number: int) -> None:
        keys = [f"{number}-{each}" for each in range(KEYS // WRITERS)]
        async with await AsyncConnection.connect(self._database_url, autocommit=True) as conn:
            while not self._stop.is_set():
                for key in keys:
                    at = self.written.get(key, 0)
                    await append(conn, key, str(at).encode(), routing_key=ROUTING_KEYS[at % 2])
                    self.written[key] = at + 1
                await asyncio.sleep(0.1)  # a load, not a flood

    def stop(self) -> None:
        self._stop.set()

    @property
    def rows(self) -> int:
        return sum(self.written.values())


async def goes_on_for(seconds: float, writers: Writers) -> None:
    """Return when the outage was long enough, and writers wrote meanwhile."""
    until, before = time.monotonic() + seconds, writers.rows
    await eventually(lambda: time.monotonic() > until and writers.rows > before + KEYS, seconds + 30)


async def test_a_long_outage_needs_no_hand(
    own_servers: Servers, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """
    The broker is killed, stopped in its tracks, out of memory, without the work queue's bindings, shut down; two relays
    go on by themselves, refuse nothing, block no key, and each key's rows reach the queue in order, all of them.
    """
    rabbitmq = own_servers.rabbitmq
    with places.database(own_servers) as database_url, places.vhost(own_servers) as amqp_url:
        upgrade(database_url)
        declare_topology(amqp_url)
        settings = {"probe_seconds": 0.3, "confirm_seconds": 1.0}
        relays = [RelayProcess(database_url, amqp_url, tmp_path, **settings).start() for _ in range(2)]
        writers = Writers(database_url)
        try:
            for relay in relays:
                await relay.ready(30)
            tasks = [asyncio.create_task(writers.write(each), name=f"writer-{each}") for each in range(WRITERS)]

            await asyncio.to_thread(rabbitmq.kill)
            await goes_on_for(SECONDS, writers)
            await asyncio.to_thread(rabbitmq.start)
            await becomes("connected", lambda: relays[0].says("broker"), 30)

            await asyncio.to_thread(rabbitmq.pause)
            await goes_on_for(SECONDS, writers)
            await asyncio.to_thread(rabbitmq.resume)
            await becomes("connected", lambda: relays[0].says("broker"), 30)

            await asyncio.to_thread(rabbitmq.control, "set_vm_memory_high_watermark", "0.00001")
            await goes_on_for(SECONDS, writers)
            await asyncio.to_thread(rabbitmq.control, "set_vm_memory_high_watermark", "0.4")
            await becomes("connected", lambda: relays[0].says("broker"), 30)

            async with broker(amqp_url) as channel:
                for routing_key in ROUTING_KEYS:
                    await channel.queue_unbind("orders.work", "orders", routing_key)
            await goes_on_for(SECONDS, writers)
            declare_topology(amqp_url)

            await asyncio.to_thread(rabbitmq.stop)
            await goes_on_for(SECONDS, writers)
            await asyncio.to_thread(rabbitmq.start)
            began = time.monotonic()

            writers.stop()
            await asyncio.gather(*tasks)
            async with (
                await AsyncConnection.connect(database_url, autocommit=True) as conn,
                recording(amqp_url) as recorder,
            ):
                await becomes({"sent": writers.rows}, lambda: states(conn), 300)
                record_property("rows", writers.rows)
                record_property("seconds_until_all_was_sent", round(time.monotonic() - began, 2))
                key_of = await keys_by_event(conn)
                await eventually(lambda: len(recorder.event_ids) == writers.rows, 300)
            assert recorder.numbers(key_of) == {key: list(range(rows)) for key, rows in writers.written.items()}
            for relay in relays:
                assert relay.runs
                assert await relay.says("blocked_keys") == 0
                assert await relay.metric("relay_refused_total") == 0
        finally:
            writers.stop()
            for relay in relays:
                relay.kill()
