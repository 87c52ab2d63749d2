"""The whole way, when nothing goes wrong."""

from uuid import UUID

import httpx

from dev.sandbox.process import by_popen
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey import shoppers
from tests.journey.recorder import Recorder
from tests.journey.shoppers import ORDER
from tests.journey.trace import Trace


async def test_through_nginx_to_done(start_system: StartSystem, trace: Trace) -> None:
    """
    An order placed through nginx, by either route, is carried, worked and done, and everybody is told.
    """
    system = start_system(settings=trace.settings, launch=by_popen)
    recorder = Recorder(system.amqp_url)
    await recorder.subscribe()

    async with shoppers.client(system.base_url) as http:
        placed = await http.post("/orders", json=ORDER)
        assert placed.status_code == httpx.codes.CREATED
        order = placed.json()
        assert placed.headers["Location"] == f"/orders/{order['order_id']}"
        assert order["status"] == "placed"

        tutorial = await http.post("/order/place")
        assert tutorial.status_code == httpx.codes.OK
        assert tutorial.json().keys() == {"order_id", "status"}
        tutorial_id = tutorial.json()["order_id"]

        async def both_are_done() -> bool:
            ours = (await http.get(f"/orders/{order['order_id']}")).json()
            theirs = (await http.get(f"/order/get/{tutorial_id}")).json()
            assert theirs.keys() == {"order_id", "status"}
            return bool(ours["status"] == theirs["status"] == "done")

        await eventually(both_are_done, 20)

        assert (await http.get("/order/get/1")).json()["detail"] == "Order not found"
        assert (await http.get("/health")).json() == {"status": "healthy", "database": "healthy"}
        assert (await http.get("/health/ready")).status_code == httpx.codes.NOT_FOUND

    await trace.check(system, [UUID(order["order_id"]), UUID(tutorial_id)], recorder)
    assert {event.routing_key for event in recorder.heard} == {"order.placed", "order.done"}

    relay = system.relay_urls[0]
    assert (await shoppers.get(f"{relay}/health/live")).status_code == httpx.codes.OK
    assert (await shoppers.get(f"{relay}/health/ready")).status_code == httpx.codes.OK

    async def status_tells_it() -> bool:
        status = (await shoppers.get(f"{relay}/status")).json()
        assert (status["broker"], status["database"]) == ("connected", "connected")
        assert (status["published"], status["backlog"], status["blocked_keys"]) == (4, 0, 0)
        assert status["oldest_pending_seconds"] == 0
        return bool(status["confirm_p50_ms"] > 0)

    await eventually(status_tells_it)
