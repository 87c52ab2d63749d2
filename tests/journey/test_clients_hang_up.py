"""What once lost orders for ever, with no fault at all: clients that do not wait for their answer."""

import asyncio
import contextlib
import os
import random
from urllib.parse import urlsplit

import pytest

from tests.conftest import StartSystem
from tests.journey.trace import Trace

SECONDS = float(os.environ.get("HANG_UP_SECONDS", "8"))
CLIENTS = 100
# Longer than an answer takes at this load, so that some are waited for and some are not.
LONGEST_WAIT_SECONDS = 0.15

BODY = b'{"customer_id":"17850","currency":"GBP","lines":[{"sku":"85123A","quantity":6,"unit_price_minor":255}]}'
REQUESTS = (
    b"POST /orders HTTP/1.1\r\nHost: shop.example\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
    b"POST /order/place HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 0\r\n\r\n",
)


async def post_and_hang_up(port: int, until: float) -> tuple[int, int]:
    """Post again and again; return how often the answer was waited for, and how often not."""
    loop = asyncio.get_running_loop()
    answered = gone = 0
    while loop.time() < until:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = random.choice(REQUESTS)
        # Now and then not even the whole request gets out.
        writer.write(request if random.random() < 0.9 else request[: random.randrange(len(request))])
        status = b""
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(random.uniform(0, LONGEST_WAIT_SECONDS)):
                status = await reader.readline()
        answered += status.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201"))
        gone += not status
        writer.transport.abort()
    return answered, gone


@pytest.mark.long
async def test_a_hundred_clients_post_and_hang_up(start_system: StartSystem, trace: Trace) -> None:
    """
    However many clients leave before their answer, every order that was written has its event, and is done.
    """
    system = start_system(settings={"ORDERS_HANDLER": "orders.handlers:do_nothing"})
    port = urlsplit(system.base_url).port
    assert port is not None
    until = asyncio.get_running_loop().time() + SECONDS

    counts = await asyncio.gather(*(post_and_hang_up(port, until) for _ in range(CLIENTS)))

    stories = await trace.check(system, [], handler=False)
    answered, gone = (sum(column) for column in zip(*counts, strict=True))
    assert answered > 100
    assert gone > 100
    assert len(stories) > answered, "orders of clients that hung up were taken too"
