"""Fixtures: an api in the test's own loop in front of this test's database, orders to place, a wire to the database."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from dev.sandbox.ports import free_port
from dev.sandbox.wire import Wire, wire_to
from orders.api.live import Live
from orders.api.middleware import with_head, with_request_id
from orders.app import create_app
from orders.runtime.http_server import HttpServer
from orders.runtime.settings import ApiSettings
from tests.eventually import eventually

NEW: dict[str, Any] = {
    "customer_id": "17850",
    "currency": "GBP",
    "lines": [{"sku": "85123A", "quantity": 6, "unit_price_minor": 255}],
}


class Api:
    """A running api, and a client of it."""

    def __init__(self, live: Live, server: HttpServer, client: httpx.AsyncClient) -> None:
        self.live = live
        self.server = server
        self.client = client

    def stop(self) -> None:
        """What SIGTERM does."""
        self.live.close()
        self.server.stop()

    async def place(self, **changes: Any) -> dict[str, Any]:
        """Place an order and return it."""
        answer = await self.client.post("/orders", json={**NEW, **changes})
        assert answer.status_code == 201, answer.text
        placed: dict[str, Any] = answer.json()
        return placed


StartApi = Callable[..., Awaitable[Api]]


@asynccontextmanager
async def running(database_url: str, **settings: str) -> AsyncIterator[Api]:
    port = free_port()
    read = ApiSettings.read({"DATABASE_URL": database_url, "ORDERS_PORT": str(port), **settings})
    live = Live(read.orders_client_share)
    server = HttpServer(with_request_id(with_head(create_app(read, live))), read.orders_host, port, 3)
    task = asyncio.create_task(server.serve(), name="api")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        api = Api(live, server, client)

        async def is_ready() -> bool:
            return server.started and (await client.get("/health/ready")).status_code == 200

        await eventually(is_ready)
        try:
            yield api
        finally:
            await client.aclose()  # an open connection would be waited for
            api.stop()
            await task


@pytest.fixture
async def start_api(database_url: str) -> AsyncIterator[StartApi]:
    """Start apis in front of this test's database; settings are given as in the environment."""
    async with AsyncExitStack() as stack:

        async def start(**settings: str) -> Api:
            return await stack.enter_async_context(running(database_url, **settings))

        yield start


@pytest.fixture
async def api(start_api: StartApi) -> Api:
    """An api with every setting at its default."""
    return await start_api()


@pytest.fixture
async def wire(database_url: str) -> AsyncIterator[Wire]:
    """Between the code under test and its database."""
    async with wire_to(database_url) as wire:
        yield wire
