"""HEAD is GET without the body, wherever there is a GET; every answer has a request id."""

import re
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import httpx
import pytest
from psycopg import AsyncConnection

from orders.api.middleware import allow
from tests.orders.conftest import Api

# Of each answer its own.
MOVING = {"date", "x-request-id"}


def lasting(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in MOVING}


@pytest.mark.parametrize(
    "path",
    ["/orders", "/orders?limit=0", "/orders/{order_id}", "/orders/{none}", "/order/get/{order_id}", "/health",
     "/health/live", "/health/ready", "/openapi.json", "/docs", "/nothing"],
)  # fmt: skip
async def test_head_is_get_without_its_body(api: Api, path: str) -> None:
    """
    The status and every header are those of the GET, the length of its body included; the body is not there.
    """
    order = await api.place()
    path = path.format(order_id=order["order_id"], none=uuid4())
    got = await api.client.get(path, headers={"X-Request-ID": "r-1"})

    head = await api.client.head(path, headers={"X-Request-ID": "r-1"})

    assert (head.status_code, head.content) == (got.status_code, b"")
    assert lasting(head.headers) == lasting(got.headers)
    assert int(head.headers["content-length"]) == len(got.content) > 0


async def test_head_of_what_is_known(api: Api) -> None:
    """
    A HEAD has the tag, and honours it.
    """
    path = f"/orders/{(await api.place())['order_id']}"
    tag = (await api.client.head(path)).headers["etag"]

    assert (await api.client.head(path, headers={"If-None-Match": tag})).status_code == 304


async def test_head_of_a_stream(api: Api) -> None:
    """
    A HEAD of a stream that has no end yet ends at once, and nobody is left watching.
    """
    order = await api.place()
    head = await api.client.head(f"/orders/{order['order_id']}/events")

    assert (head.status_code, head.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
    assert (await api.client.get("/health/live")).status_code == 200
    assert not api.live.is_watched()


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/orders", "GET, HEAD, OPTIONS, POST"),
        ("/orders/x", "GET, HEAD, OPTIONS"),
        ("/orders/x/cancel", "OPTIONS, POST"),
        ("/orders/x/events", "GET, HEAD, OPTIONS"),
        ("/order/place", "OPTIONS, POST"),
        ("/docs", "GET, HEAD, OPTIONS"),
    ],
)
async def test_allow(api: Api, path: str, methods: str) -> None:
    """
    OPTIONS and a 405 say which methods there are.
    """
    options = await api.client.options(path)
    refused = await api.client.delete(path)

    assert (options.status_code, options.headers["allow"]) == (204, methods)
    assert (refused.status_code, refused.headers["allow"]) == (405, methods)


async def test_a_head_writes_nothing(api: Api, conn: AsyncConnection) -> None:
    """
    What only a POST may do, no HEAD does.
    """
    refused: httpx.Response = await api.client.head("/order/place")

    assert (refused.status_code, refused.headers["allow"]) == (405, "OPTIONS, POST")
    row: Any = await (await conn.execute("SELECT count(*) FROM orders")).fetchone()
    assert row == (0,)


def test_allow_names_head_where_there_is_get() -> None:
    """
    A list of methods stays what it is, but for the HEAD that comes with a GET.
    """
    assert allow("OPTIONS, GET") == "GET, HEAD, OPTIONS"
    assert allow("POST") == "POST"


async def test_request_id(api: Api) -> None:
    """
    An answer carries the id that its request had, or a new one where that was none or not harmless.
    """
    for path in ("/orders", "/health", "/nothing"):
        assert (await api.client.get(path, headers={"X-Request-ID": "r-1"})).headers["x-request-id"] == "r-1"
        for given in ({}, {"X-Request-ID": 'a"b'}, {"X-Request-ID": "x" * 129}):
            made = (await api.client.get(path, headers=given)).headers["x-request-id"]
            assert re.fullmatch("[0-9a-f]{32}", made)
