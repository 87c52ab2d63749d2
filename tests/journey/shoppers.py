"""Clients who place orders one after another, each with a key, until they have been answered."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import httpx

from tests.eventually import eventually

ORDER = {
    "customer_id": "17850",
    "currency": "GBP",
    "lines": [{"sku": "85123A", "description": "WHITE HANGING HEART T-LIGHT HOLDER", "quantity": 6,
               "unit_price_minor": 255}],
}  # fmt: skip

RETRY_SECONDS = 0.1
THINK_SECONDS = 0.02  # between two orders of one shopper: this is no load test


class Shoppers:
    """Some of them, at work while `shopping` is open."""

    def __init__(self, base_url: str, many: int = 8) -> None:
        self.base_url = base_url
        self.many = many
        self.accepted: list[UUID] = []
        self.keys = 0
        self.answers: Counter[int] = Counter()
        self.errors: list[httpx.TransportError] = []
        self._stop = asyncio.Event()

    @asynccontextmanager
    async def shopping(self) -> AsyncIterator[None]:
        """Shop meanwhile; on the way out, each brings the order in hand to its end."""
        async with client(self.base_url) as http, asyncio.TaskGroup() as tasks:
            for number in range(self.many):
                tasks.create_task(self._shop(http), name=f"shopper-{number}")
            try:
                yield
            finally:
                self._stop.set()

    async def go_on(self, many: int, within: float = 30) -> None:
        """Return when so many more orders were accepted."""
        before = len(self.accepted)
        await eventually(lambda: len(self.accepted) >= before + many, within)

    async def _shop(self, http: httpx.AsyncClient) -> None:
        while not self._stop.is_set():
            self.accepted.append(await self._place(http, secrets.token_hex(8)))
            self.keys += 1
            await asyncio.sleep(THINK_SECONDS)

    async def _place(self, http: httpx.AsyncClient, key: str) -> UUID:
        """Ask until the answer is yes."""
        while True:
            try:
                answer = await http.post("/orders", json=ORDER, headers={"Idempotency-Key": key})
            except httpx.TransportError as error:
                self.errors.append(error)
            else:
                self.answers[answer.status_code] += 1
                if answer.status_code == httpx.codes.CREATED:
                    return UUID(answer.json()["order_id"])
                assert answer.status_code in {502, 503, 504}, answer.text
            await asyncio.sleep(RETRY_SECONDS)


def client(base_url: str) -> httpx.AsyncClient:
    """A client that asks this machine and no proxy of the caller's."""
    return httpx.AsyncClient(base_url=base_url, timeout=30, trust_env=False)


async def place(base_url: str, many: int) -> list[UUID]:
    """Place so many orders, some at a time; each must be taken at once."""
    at_once = asyncio.Semaphore(8)

    async def place_one(http: httpx.AsyncClient) -> UUID:
        async with at_once:
            answer = await http.post("/orders", json=ORDER)
        assert answer.status_code == httpx.codes.CREATED, answer.text
        return UUID(answer.json()["order_id"])

    async with client(base_url) as http:
        return await asyncio.gather(*(place_one(http) for _ in range(many)))


async def post(base_url: str) -> httpx.Response:
    """Try once to place an order, without a key."""
    async with client(base_url) as http:
        return await http.post("/orders", json=ORDER)


async def get(url: str) -> httpx.Response:
    """One GET."""
    async with client("") as http:
        return await http.get(url)
