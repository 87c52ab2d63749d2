"""Many clients, the same keys, three apis, and one of them dies."""

import asyncio
import random
from collections import Counter, defaultdict

import msgspec
import psycopg
import pytest

from dev.sandbox.system import System
from tests.conftest import StartSystem
from tests.eventually import eventually
from tests.journey.placing import LONG
from tests.journey.raw_http import Connection

CLIENTS = 64
KEYS = 1000
# Of the keys, how many each client asks for; JOURNEYS=long has every one of them ask for all.
EACH = KEYS if LONG else 150
HANG_UP_EVERY = 7


def body_of(key: int) -> bytes:
    line = {"sku": f"S{key}", "quantity": 1 + key % 9, "unit_price_minor": key}
    return msgspec.json.encode({"customer_id": f"c{key % 50}", "currency": "GBP", "lines": [line]})


class Crowd:
    """The clients, and what they were answered."""

    def __init__(self, system: System) -> None:
        self.urls = system.api_urls
        self.answers: dict[int, set[bytes]] = defaultdict(set)
        self.statuses: Counter[int] = Counter()
        self.broken = 0
        self.hung_up = 0

    async def shop(self, seed: int) -> None:
        chance = random.Random(seed)
        keys = chance.sample(range(KEYS), EACH)
        # Together they ask for all of them.
        keys += [key for key in range(KEYS) if key % CLIENTS == seed and key not in keys]
        connection = Connection(chance.choice(self.urls))
        for key in keys:
            while not await self._place(connection, key, chance):
                connection.hang_up()
                connection = Connection(chance.choice(self.urls))
        connection.hang_up()

    async def _place(self, connection: Connection, key: int, chance: random.Random) -> bool:
        headers = {"Content_Type": "application/json", "Idempotency_Key": f"key-{key}"}
        try:
            if chance.randrange(HANG_UP_EVERY) == 0:
                self.hung_up += 1
                await connection.send("POST", "/orders", body_of(key), **headers)
                await asyncio.sleep(chance.uniform(0, 0.02))
                return False
            status, _, answer = await connection.ask("POST", "/orders", body_of(key), **headers)
        except (OSError, EOFError):
            self.broken += 1
            await asyncio.sleep(0.02)
            return False
        self.statuses[status] += 1
        if status == 201:
            self.answers[key].add(answer)
        else:
            await asyncio.sleep(0.05)
        return status == 201


@pytest.mark.long
async def test_sixty_four_clients_with_the_same_keys(start_system: StartSystem) -> None:
    """
    Each key has one order, one event and one answer, byte for byte, though clients hang up and an api is killed.
    """
    system = start_system(relays=0, workers=0, with_nginx=False)
    crowd = Crowd(system)

    async def kill_one() -> None:
        await eventually(lambda: sum(crowd.statuses.values()) > CLIENTS * EACH / 3, 600)
        await asyncio.to_thread(system.process("api-2").kill)

    await asyncio.gather(kill_one(), *(crowd.shop(seed) for seed in range(CLIENTS)))
    print(f"{CLIENTS} clients, {EACH} keys each: {crowd.statuses}, {crowd.hung_up} hung up, {crowd.broken} broken")

    assert crowd.statuses.keys() <= {201, 503}
    assert crowd.broken > 0, "the kill was noticed"
    assert crowd.hung_up > CLIENTS
    assert len(crowd.answers) == KEYS
    assert {len(bodies) for bodies in crowd.answers.values()} == {1}
    async with await psycopg.AsyncConnection.connect(system.database_url) as conn:
        for counted, expected in (
            ("SELECT count(*) FROM orders", KEYS),
            ("SELECT count(*) FROM idempotency_keys", KEYS),
            ("SELECT count(*) FROM outbox WHERE routing_key = 'order.placed'", KEYS),
            ("SELECT count(DISTINCT key) FROM outbox", KEYS),
        ):
            cursor = await conn.execute(counted)
            assert await cursor.fetchone() == (expected,), counted
        cursor = await conn.execute("SELECT key, answer FROM idempotency_keys")
        stored = {int(key.removeprefix("key-")): bytes(answer) for key, answer in await cursor.fetchall()}
    assert {key: {answer} for key, answer in stored.items()} == crowd.answers
