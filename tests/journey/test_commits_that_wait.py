"""Commits wait for a synchronous standby that is away: no process takes the connections that people need."""

import contextlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
from psycopg import AsyncConnection

from dev.sandbox.servers import Servers
from orders.database.severing import MOST_LEFT
from orders.runtime.settings import DoctorSettings
from orders.runtime.timeouts import PROMISE_SECONDS
from orders.tools.doctor import examine
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey import shoppers
from tests.journey.trace import Trace

REFUSALS = 40  # of all shoppers: some 10 s, in which the two apis severed twenty connections each without the bound
OPENERS = 2  # the most connections that a process opens for one purpose at once

BY_PURPOSE = """
    SELECT application_name, count(*) FROM pg_stat_activity
    WHERE application_name ~ '^(orders|relay)' AND datname = current_database() GROUP BY 1
"""


async def set_standby(database_url: str, name: str) -> None:
    """Have every commit wait for this standby; for none if the name is empty."""
    async with await AsyncConnection.connect(database_url, autocommit=True) as conn:
        await conn.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'".encode())
        await conn.execute("SELECT pg_reload_conf()")


@contextlib.asynccontextmanager
async def standby_away(database_url: str) -> AsyncIterator[None]:
    """A synchronous standby is configured, and is not there; at both ends a person connects."""
    await set_standby(database_url, "ghost")
    try:
        yield
    finally:
        await set_standby(database_url, "")


async def is_zero(count: Callable[[], Awaitable[int]]) -> bool:
    return await count() == 0


async def test_a_synchronous_standby_is_away(own_servers: Servers, start_own_system: StartSystem, trace: Trace) -> None:
    """
    Placements get 503, reads and the relay go on, no purpose keeps more than a few backends, and nothing is lost.
    """
    system = start_own_system(apis=2, settings=trace.settings)
    load = shoppers.Shoppers(system.base_url)
    most: Counter[str] = Counter()

    async def refused_enough() -> bool:
        async with await AsyncConnection.connect(system.database_url) as person:
            for purpose, backends in await (await person.execute(BY_PURPOSE)).fetchall():
                most[purpose] = max(most[purpose], backends)
        return load.answers[503] >= REFUSALS

    async def doctor_says() -> str:
        reports = await examine(DoctorSettings.read({"DATABASE_URL": system.database_url}))
        return "; ".join(line for report in reports for line in report.wrong)

    async def unsent() -> int:
        async with await AsyncConnection.connect(system.database_url) as conn:
            [[rows]] = await (await conn.execute("SELECT count(*) FROM outbox WHERE settled_at IS NULL")).fetchall()
        return int(rows)

    trace.close_gate()
    async with load.shopping():
        await load.go_on(50)
        system.process("relay-1").pause()
        await load.go_on(50)
        async with standby_away(own_servers.database_url):
            trace.open_gate()  # the worker has claims and finishes to write, too
            system.process("relay-1").resume()
            began = time.monotonic()
            answer = await shoppers.post(system.base_url)
            took = time.monotonic() - began
            await eventually(refused_enough, 60)
            diagnosis = await doctor_says()
            found = await shoppers.get(f"{system.base_url}/orders/{load.accepted[0]}")
            await eventually(lambda: is_zero(unsent), 20)
        returned = time.monotonic()
        await load.go_on(1, within=15)
        print(f"{dict(most)}; 503 after {took:.2f} s; 201 {time.monotonic() - returned:.2f} s after its return")
        await load.go_on(50)

    assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE, answer.text
    assert answer.headers["retry-after"] == "1"
    assert found.status_code == httpx.codes.OK, found.text
    assert took < 5 * PROMISE_SECONDS
    assert re.match(r"commits wait for a synchronous standby: ghost; \d+ wait, the oldest since 20", diagnosis)
    assert await doctor_says() == ""
    processes = {"orders-write": 2, "orders-cancel": 2, "orders-read": 2, "orders-watch": 2, "orders-notify": 3}
    bounds = {purpose: processes.get(purpose, 1) * (2 * OPENERS + MOST_LEFT) for purpose in most}
    assert {purpose: many for purpose, many in most.items() if many > bounds[purpose]} == {}
    assert most["orders-write"] >= 2 * MOST_LEFT, "the connections were not severed"
    assert most["orders-finish"] >= MOST_LEFT
    assert load.answers.keys() == {201, 503}
    await trace.check(system, load.accepted)
    assert len(set(load.accepted)) == load.keys, "one order for each key"
    assert {1} == {process.starts for process in system.processes}


async def test_a_repeat_waits_for_the_standby(own_servers: Servers, start_own_system: StartSystem) -> None:
    """
    A placement or a cancel whose commit became visible without its standby is not acknowledged to who repeats it.
    """
    system = start_own_system(apis=1, relays=0, workers=0, with_nginx=False)
    async with (
        httpx.AsyncClient(base_url=system.base_url, timeout=10) as client,
        await AsyncConnection.connect(system.database_url, autocommit=True) as person,
    ):

        async def is_visible() -> bool:
            await person.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            return await (await person.execute("SELECT status FROM orders")).fetchall() == [(status,)]

        def place() -> Awaitable[httpx.Response]:
            return client.post("/orders", json=shoppers.ORDER, headers={"Idempotency-Key": "k"})

        order_id = None

        def cancel() -> Awaitable[httpx.Response]:
            return client.post(f"/orders/{order_id}/cancel")

        for status, ask in (("placed", place), ("cancelled", cancel)):
            async with standby_away(own_servers.database_url):
                assert (await ask()).status_code == httpx.codes.SERVICE_UNAVAILABLE
                await eventually(is_visible)
                assert (await ask()).status_code == httpx.codes.SERVICE_UNAVAILABLE
                await eventually(is_visible)

            async def is_acknowledged() -> httpx.Response | None:
                answer = await ask()  # noqa: B023
                return answer if answer.is_success else None

            answer = await eventually(is_acknowledged)
            assert answer is not None
            assert answer.json()["status"] == status
            order_id = answer.json()["order_id"]
        [[orders]] = await (await person.execute("SELECT count(*) FROM orders")).fetchall()
        assert orders == 1
