import asyncio
from typing import Any, cast
from uuid import UUID

from psycopg import AsyncConnection

from orders.api.services import READ_SIZE, Services
from orders.app import reading_limits
from orders.database.api_keys_table import KeyId
from orders.database.orders_table import OrderLookup
from orders.runtime.settings import ApiSettings
from tests.eventually import eventually
from tests.orders.conftest import StartApi


async def test_reads_are_bounded_by_their_size(start_api: StartApi, conn: AsyncConnection) -> None:
    """
    However many orders are asked for at once, few are read by one statement: each may be a megabyte.
    """
    api = await start_api(ORDERS_PATIENCE="10")
    order = await api.place()

    async def read(name: str) -> float:
        text = (await api.client.get("/metrics")).text
        return sum(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"orders_batch_{name}"))

    counted, bounded = 'rows_count{statement="read"}', 'rows_bucket{le="64.0",statement="read"}'
    before = await read(counted) - await read(bounded)
    async with conn.transaction():
        await conn.execute("LOCK orders IN ACCESS EXCLUSIVE MODE")
        asked = [asyncio.create_task(api.client.get(f"/orders/{order['order_id']}")) for _ in range(90)]

        async def all_wait() -> bool:
            return await read('waiting{statement="read"}') == 90

        await eventually(all_wait)
    assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
    assert await read(counted) - await read(bounded) == before


async def test_each_read_counts_by_its_size() -> None:
    """
    A look-up and a step down a list count as READ_SIZE in a batch, a key as nothing; 64 look-ups fill one.
    """
    sizes: list[int] = []

    async def read(item: object, size: int = 0, until: float | None = None) -> None:
        sizes.append(size)

    services = Services(*[cast(Any, each) for each in (None, None, read, read, None, None, None, None, None)])
    await services.find(OrderLookup("", UUID(int=0)), None)
    await services.scan(cast(Any, None), None)
    await services.find_key(KeyId("key"), None)

    assert sizes == [READ_SIZE, READ_SIZE, 0]
    assert reading_limits(ApiSettings.read({"DATABASE_URL": "postgresql:///"})).batch_bytes == 64 * READ_SIZE
