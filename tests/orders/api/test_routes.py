import asyncio
from typing import Any
from uuid import uuid4

import pytest

from dev.sandbox.wire import Wire
from orders.api.fast_path import unless_gone
from orders.api.health import CHECK_SECONDS
from tests.eventually import eventually
from tests.orders.conftest import NEW, Api, StartApi


async def test_a_placed_order_can_be_read(api: Api) -> None:
    """
    The Location of a placement is the order, as the placement has it.
    """
    placed = await api.client.post("/orders", json=NEW)
    read = await api.client.get(placed.headers["location"])

    assert (placed.status_code, read.status_code) == (201, 200)
    assert placed.content == read.content
    assert read.headers["content-type"] == "application/json"


async def test_what_is_known_is_not_sent_again(api: Api) -> None:
    """
    A GET with the tag of the present state has no body, and one with another tag has.
    """
    path = f"/orders/{(await api.place())['order_id']}"
    tag = (await api.client.get(path)).headers["etag"]
    known = await api.client.get(path, headers={"If-None-Match": tag})
    other = await api.client.get(path, headers={"If-None-Match": '"other"'})

    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", tag)
    assert (other.status_code, other.headers["etag"]) == (200, tag)


async def test_the_tutorials_routes(api: Api) -> None:
    """
    The tutorial's clients place without a body, and read what they know of an order; theirs has no lines.
    """
    placed = await api.client.post("/order/place", content=b"not read")
    order_id = placed.json()["order_id"]

    assert (placed.status_code, placed.json()) == (200, {"order_id": order_id, "status": "placed"})
    assert (await api.client.get(f"/order/get/{order_id}")).json() == placed.json()
    assert (await api.client.get(f"/orders/{order_id}")).json()["lines"] is None
    for unknown in (uuid4(), "1"):
        problem = await api.client.get(f"/order/get/{unknown}")
        assert (problem.status_code, problem.json()["detail"]) == (404, "Order not found")


async def test_a_parameter_is_given_once(api: Api) -> None:
    """
    Of two values for one parameter none is taken.
    """
    answer = await api.client.get("/orders?limit=1&limit=2")

    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "limit")


async def test_health(start_api: StartApi, wire: Wire, database_url: str) -> None:
    """
    With its database away an api is alive, not ready, and unhealthy; and well again when that has come back.
    """
    api = await start_api(DATABASE_URL=wire.url(database_url), ORDERS_PATIENCE="1")

    async def health() -> list[Any]:
        answers = [await api.client.get(f"/health{path}") for path in ("/live", "/ready", "")]
        return [(answer.status_code, answer.json()) for answer in answers]

    def told(status: int, is_ready: bool, word: str) -> list[Any]:
        return [
            (200, {"live": True}), (status, {"ready": is_ready}), (200, {"status": word, "database": word})
        ]  # fmt: skip

    async def is_well() -> bool:
        return await health() == told(200, True, "healthy")

    async def is_ill() -> bool:
        return await health() == told(503, False, "unhealthy")

    await eventually(is_well)
    wire.cut()
    await eventually(is_ill)
    wire.mend()
    await eventually(is_well)


async def test_health_of_many(api: Api) -> None:
    """
    However often /health is asked for, the api looks at the database once in a second.
    """

    async def looks() -> float:
        text = (await api.client.get("/metrics")).text
        return float(next(line for line in text.splitlines() if 'rows_count{statement="read"}' in line).split()[1])

    loop = asyncio.get_running_loop()
    began, before = loop.time(), await looks()
    for _ in range(4):
        answers = await asyncio.gather(*(api.client.get("/health") for _ in range(50)))
        assert {200} == {each.status_code for each in answers}
    assert await looks() - before <= 1 + (loop.time() - began) / CHECK_SECONDS


@pytest.fixture
def leaving() -> asyncio.Event:
    """The moment at which the client hangs up."""
    return asyncio.Event()


@pytest.fixture
def receive(leaving: asyncio.Event) -> Any:
    """What comes of a request whose body was read."""

    async def receive() -> Any:
        await leaving.wait()
        return {"type": "http.disconnect"}

    return receive


async def test_the_result_of_a_wait(receive: Any) -> None:
    """
    While the client is there, a wait has its result.
    """

    async def result() -> int:
        return 7

    assert await unless_gone(receive, result()) == 7


async def test_a_wait_ends_with_its_client(receive: Any, leaving: asyncio.Event) -> None:
    """
    When the client hangs up, the wait is cancelled.
    """
    ended = asyncio.Event()

    async def for_ever() -> int:
        try:
            await asyncio.Event().wait()
            return 7
        finally:
            ended.set()

    asyncio.get_running_loop().call_soon(leaving.set)

    assert await unless_gone(receive, for_ever()) is None
    await asyncio.wait_for(ended.wait(), 1)
