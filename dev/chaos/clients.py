"""Clients: each writes down what it is about to ask and what it was answered, and asks again until it is answered.

An order is placed with a key of its own; what is sent again with the same key is the same order. The clients of faults
(who hang up, ask fifty times at once, send nonsense) are here too, for they write into the same ledger.
"""

import asyncio
import contextlib
import itertools
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from urllib.parse import urlsplit

import httpx
import msgspec

from dev.chaos.ledger import Answer, Forgotten, Intent, Ledger, Odd, now
from orders.runtime.retry_pauses import backoff

REQUEST_SECONDS = 15.0
# Hundreds of clients that asked again at once would keep the wires, which run beside them, from carrying anything.
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.2, 4.0
# Requests on their way; others wait for their turn here, since httpx compares each one that waits in its pool with each
# connection, whenever one of either comes or goes.
AT_ONCE = 120
GONE = (OSError, TimeoutError, RuntimeError)  # the last is uvloop's word for a transport that was closed meanwhile
RETRIED = frozenset({0, 429, 502, 503, 504})  # statuses that are asked again: the outcome may be unknown


def body_of(number: int, reference: str | None = None) -> dict[str, object]:
    """The order of this number: its total is its number."""
    line = {"sku": "85123A", "description": "WHITE HANGING HEART", "quantity": 1, "unit_price_minor": number}
    order: dict[str, object] = {"customer_id": f"c{number % 1000}", "currency": "GBP", "lines": [line]}
    return order | ({"reference": reference} if reference else {})


def pauses() -> Iterator[float]:
    """Seconds between a request and its repeats."""
    return backoff(FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS)


class Clients:
    """Some of them at work while `working`, and those that a fault sends."""

    def __init__(self, base_url: str, ledger: Ledger, rate: float) -> None:
        self.base_url = base_url
        self.ledger = ledger
        self.rate = rate
        self.accepted: dict[str, float] = {}  # order -> when its first yes came
        self.answers: Counter[int] = Counter()
        self.in_flight = 0
        self._numbers = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._pacing: asyncio.Task[None] | None = None
        self._http: httpx.AsyncClient | None = None
        self._stopping = False
        self._room = asyncio.Semaphore(AT_ONCE)

    async def start(self) -> None:
        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=50)
        self._http = httpx.AsyncClient(base_url=self.base_url, timeout=REQUEST_SECONDS, trust_env=False, limits=limits)
        self._pacing = asyncio.create_task(self._pace(), name="clients")

    async def stop(self, patience: float = 60.0) -> None:
        """No new orders; those that were not answered yet are asked for until they are, for so many seconds."""
        self._stopping = True
        if self._pacing is not None:
            await self._pacing
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._http is not None:
            await self._http.aclose()

    async def place(self, *, reference: str | None = None, tries: int = 1_000_000) -> str | None:
        """Place one order, however often it takes; return its id."""
        assert self._http is not None
        key, number = secrets.token_hex(12), self._number()
        for pause in itertools.islice(pauses(), tries):
            answer = await self._ask(key, number, reference)
            if answer.status == httpx.codes.CREATED:
                return answer.order_id
            if answer.status not in RETRIED:
                return None  # in the ledger: the checker will say what it thinks of it
            await asyncio.sleep(pause)
        return None

    def send(self, many: int) -> None:
        """Place so many at once, beside the usual ones."""
        for _ in range(many):
            self._start()

    async def hang_up(self) -> None:
        """Send an order and be gone before the answer; later, ask again with the same key."""
        key, number = secrets.token_hex(12), self._number()
        await self.ledger.write(Intent(key, number, now()))
        with contextlib.suppress(*GONE):
            async with asyncio.timeout(5):
                _, writer = await asyncio.open_connection(*self._address())
                writer.write(self._raw(key, msgspec.json.encode(body_of(number))))
                await writer.drain()
                await asyncio.sleep(random.uniform(0, 0.01))
                writer.transport.abort()
        if random.random() < 0.5:
            await self._insist(key, number)

    async def ask_at_once(self, many: int) -> bool:
        """The same key and body, many times at once: one order."""
        key, number = secrets.token_hex(12), self._number()
        answers = await asyncio.gather(*(self._ask(key, number, None) for _ in range(many)))
        if all(answer.status in RETRIED for answer in answers):
            answers = [await self._insist(key, number)]
        return len({answer.order_id for answer in answers if answer.status == httpx.codes.CREATED}) == 1

    async def misuse_a_key(self) -> None:
        """The same key with another body is refused with 422."""
        key, number = secrets.token_hex(12), self._number()
        await self._insist(key, number)
        other = body_of(number) | {"reference": "another"}
        await self.expect("misused key", {422}, msgspec.json.encode(other), key=key)

    async def use_twice(self, forget: Callable[[str], Awaitable[None]]) -> None:
        """Place an order, have its key forgotten, and ask again with it: that is another order."""
        key, number = secrets.token_hex(12), self._number()
        first = await self._insist(key, number)
        await forget(key)
        await self.ledger.write(Forgotten(key, first.order_id, now()))
        second = await self._insist(key, number)
        assert first.order_id != second.order_id, "a forgotten key still stood for its order"

    async def expect(self, what: str, statuses: set[int], body: bytes, *, key: str | None = None) -> None:
        """Send a body that has to be answered so; a status of RETRIED is asked again."""
        assert self._http is not None
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
        for pause in itertools.islice(pauses(), 100):
            try:
                async with self._room:
                    answer = await self._http.post("/orders", content=body, headers=headers)
            except (httpx.HTTPError, OSError):
                await asyncio.sleep(pause)
                continue
            if answer.status_code in RETRIED:
                await asyncio.sleep(pause)
                continue
            fine = answer.status_code in statuses
            await self.ledger.write(Odd(what, str(sorted(statuses)), answer.status_code, fine, now()))
            return

    async def dribble(self, seconds: float) -> None:
        """Send a body so slowly that it takes this long; the order is placed in the end, or refused as too slow."""
        key, number = secrets.token_hex(12), self._number()
        raw = self._raw(key, msgspec.json.encode(body_of(number)))
        await self.ledger.write(Intent(key, number, now()))
        with contextlib.suppress(*GONE):
            async with asyncio.timeout(seconds + 10):
                reader, writer = await asyncio.open_connection(*self._address())
                for at in range(0, len(raw), 40):
                    writer.write(raw[at : at + 40])
                    await writer.drain()
                    await asyncio.sleep(seconds * 40 / len(raw))
                await reader.read(100)
                writer.close()
        await self._insist(key, number)

    async def _pace(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self._stopping:
            self._start()
            due = max(due + 1 / self.rate, loop.time() - 0.5)
            await asyncio.sleep(max(0.0, due - loop.time()))
            while len(self._tasks) > 150 and not self._stopping:  # noqa: ASYNC110  # people wait for each other too
                await asyncio.sleep(0.02)

    def _start(self) -> None:
        task = asyncio.create_task(self._place_one(), name="client")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _place_one(self) -> None:
        await self.place()

    async def _ask(self, key: str, number: int, reference: str | None) -> Answer:
        async with self._room:
            return await self._ask_now(key, number, reference)

    async def _ask_now(self, key: str, number: int, reference: str | None) -> Answer:
        assert self._http is not None
        await self.ledger.write(Intent(key, number, now()))
        self.in_flight += 1
        order_id, detail = "", ""
        try:
            answer = await self._http.post("/orders", json=body_of(number, reference), headers={"Idempotency-Key": key})
            status = answer.status_code
            if status == httpx.codes.CREATED:
                order_id = answer.json()["order_id"]
            else:
                detail = answer.text[:200]
        except (httpx.HTTPError, OSError, ValueError) as error:
            status, detail = 0, type(error).__name__
        finally:
            self.in_flight -= 1
        self.answers[status] += 1
        entry = Answer(key, number, status, order_id, now(), detail)
        await self.ledger.write(entry)
        if order_id:
            self.accepted.setdefault(order_id, now())
        return entry

    async def _insist(self, key: str, number: int) -> Answer:
        for pause in pauses():
            answer = await self._ask(key, number, None)
            if answer.status not in RETRIED:
                return answer
            await asyncio.sleep(pause)
        raise AssertionError("unreachable: the pauses never end")

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _address(self) -> tuple[str, int]:
        parts = urlsplit(self.base_url)
        return str(parts.hostname), int(parts.port or 80)

    def _raw(self, key: str, body: bytes) -> bytes:
        head = (
            f"POST /orders HTTP/1.1\r\nHost: shop.example\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nIdempotency-Key: {key}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body
