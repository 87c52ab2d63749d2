import asyncio

from psycopg import AsyncConnection

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
