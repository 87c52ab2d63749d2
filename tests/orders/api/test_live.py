import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
from prometheus_client import REGISTRY
from psycopg import AsyncConnection

from orders.api.auth import Caller
from orders.api.live import Live
from orders.database.claim_orders import Claimed, claim_orders
from orders.database.finish_orders import finish_of, finish_orders
from tests.eventually import eventually
from tests.orders.conftest import Api
from tests.orders.database.test_cancel_orders import TRACE
from tests.orders.work_samples import work_message_again

Event = tuple[str, dict[str, Any]]

# The tick that is under way at a commit may have looked too early, the next one sees it, and while its news travel
# another one may begin.
FOLLOWING = 3


def ticks() -> float:
    """How often the api has looked so far."""
    return REGISTRY.get_sample_value("orders_watch_ticks_total") or 0


async def claim(conn: AsyncConnection, order: dict[str, Any]) -> Claimed:
    (claimed,) = await claim_orders(conn, 1, [await work_message_again(conn, UUID(order["order_id"]))])
    assert isinstance(claimed, Claimed)
    return claimed


async def finish(conn: AsyncConnection, claimed: Claimed) -> None:
    assert all(await finish_orders(conn, [finish_of(claimed, TRACE)]))


@asynccontextmanager
async def watching(api: Api, order: dict[str, Any], **headers: str) -> AsyncIterator[AsyncIterator[Event]]:
    """The stream's events, as (id, data)."""
    async with api.client.stream("GET", f"/orders/{order['order_id']}/events", headers=headers) as answer:
        assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
        yield events_of(answer)


async def events_of(answer: httpx.Response) -> AsyncIterator[Event]:
    number = ""
    async for line in answer.aiter_lines():
        if line.startswith("id: "):
            number = line.removeprefix("id: ")
        elif line.startswith("data: "):
            yield number, msgspec.json.decode(line.removeprefix("data: "))


async def test_stream(api: Api, conn: AsyncConnection) -> None:
    """
    A stream tells the status now, each change by the tick that follows its commit, and ends with the order.
    """
    order = await api.place()
    async with watching(api, order) as events:
        assert status_of(await anext(events)) == ("1", "placed")
        claimed = await claim(conn, order)
        before = ticks()
        assert status_of(await anext(events)) == ("2", "processing")
        assert ticks() - before <= FOLLOWING
        await finish(conn, claimed)
        before = ticks()
        assert status_of(await anext(events)) == ("3", "done")
        assert ticks() - before <= FOLLOWING
        assert [event async for event in events] == []


async def test_an_order_that_has_ended(api: Api, conn: AsyncConnection) -> None:
    """
    The stream of a finished order tells so and ends; who knows it already is told to come no more.
    """
    order = await api.place()
    await finish(conn, await claim(conn, order))

    async with watching(api, order) as events:
        assert [status_of(event) async for event in events] == [("3", "done")]
    async with watching(api, order, **{"Last-Event-ID": "2"}) as events:
        assert [status_of(event) async for event in events] == [("3", "done")]
    known = await api.client.get(f"/orders/{order['order_id']}/events", headers={"Last-Event-ID": "3"})
    assert known.status_code == 204


async def test_resume(api: Api, conn: AsyncConnection) -> None:
    """
    Who comes back with the last event's id hears what is newer, and nothing twice.
    """
    order = await api.place()
    claimed = await claim(conn, order)
    async with watching(api, order, **{"Last-Event-ID": "2"}) as events:
        await eventually(api.live.is_watched)
        await finish(conn, claimed)
        assert status_of(await anext(events)) == ("3", "done")


async def test_no_such_order(api: Api) -> None:
    """
    What is not there cannot be watched.
    """
    assert (await api.client.get(f"/orders/{uuid4()}/events")).status_code == 404


async def test_stop_ends_streams_and_waits_at_once(api: Api) -> None:
    """
    SIGTERM ends streams where they are, and answers those who wait with what is.
    """
    order = await api.place()
    async with watching(api, order) as events:
        await anext(events)
        waiting = asyncio.create_task(
            api.client.get(f"/orders/{order['order_id']}", headers={"Prefer": "wait=30"}, timeout=30)
        )
        await eventually(lambda: api.live._watchers == 2)
        api.stop()
        assert [event async for event in events] == []
        # A wait that the stop does not end would be cut off, unanswered, when the server's grace of 3 s is over.
        assert ((await waiting).status_code, (await waiting).json()["status"]) == (200, "placed")


async def test_wait(api: Api, conn: AsyncConnection) -> None:
    """
    `Prefer: wait=N` answers when the status changes, not before and not much later.
    """
    order = await api.place()
    path, patience = f"/orders/{order['order_id']}", 15  # which runs out long before the 30 s
    waiting = asyncio.create_task(api.client.get(path, headers={"Prefer": "wait=30"}, timeout=patience))
    await eventually(api.live.is_watched)
    assert not waiting.done()
    await claim(conn, order)
    before = ticks()
    answer = await waiting

    assert ticks() - before <= FOLLOWING
    assert (answer.json()["status"], answer.headers["preference-applied"]) == ("processing", "wait=30")


async def test_who_hangs_up_waits_no_longer(api: Api) -> None:
    """
    A client that is gone takes nobody's place until its time is over.
    """
    order = await api.place()
    waiting = asyncio.create_task(api.client.get(f"/orders/{order['order_id']}", headers={"Prefer": "wait=30"}))
    await eventually(api.live.is_watched)
    waiting.cancel()

    await eventually(lambda: not api.live.is_watched())


async def test_wait_in_vain(api: Api) -> None:
    """
    After N seconds without a change the answer is what it was; with its tag known, 304.
    """
    order = await api.place()
    path = f"/orders/{order['order_id']}"
    tag = (await api.client.get(path)).headers["etag"]
    started = time.monotonic()
    answer = await api.client.get(path, headers={"Prefer": "wait=1", "If-None-Match": tag})

    assert (304, b"", tag) == (answer.status_code, answer.content, answer.headers["etag"])
    assert time.monotonic() - started >= 1


async def test_nothing_to_wait_for(api: Api) -> None:
    """
    Who knows another state than the present one, or asks for an order at its end, has the answer at once.
    """
    order = await api.place()
    path = f"/orders/{order['order_id']}"
    started = time.monotonic()
    await api.client.get(path, headers={"Prefer": "wait=30", "If-None-Match": '"of old"'})
    await api.client.post(f"{path}/cancel")
    await api.client.get(path, headers={"Prefer": "wait=30"})

    assert time.monotonic() - started < 5


async def test_one_statement_per_tick(api: Api, conn: AsyncConnection) -> None:
    """
    However many watch, a tick asks once; each hears of its own order, and of the newest state only.
    """
    orders = [await api.place() for _ in range(20)]
    statements = 0
    tick = Live.tick

    async def counting(live: Live, conn: AsyncConnection) -> None:
        nonlocal statements
        statements += 1
        await tick(live, conn)

    watchers = [
        asyncio.create_task(api.live.change(UUID(order["order_id"]), 1, 5, Caller("")))
        for order in orders
        for _ in "ab"
    ]
    await eventually(lambda: api.live._watchers == 40)
    async with conn.transaction():
        for order in orders:
            await finish(conn, await claim(conn, order))
    await counting(api.live, conn)

    found = await asyncio.gather(*watchers)
    assert statements == 1
    assert [(order["order_id"], "done", 3) for order in orders for _ in "ab"] == [
        (str(now.order_id), now.status, now.version) for now in found if now is not None
    ]
    assert not api.live.is_watched()


def status_of(event: Event) -> tuple[str, str]:
    return event[0], event[1]["status"]
