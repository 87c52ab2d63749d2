"""A row that only the database can refuse."""

import asyncio

from psycopg import AsyncConnection

from orders.database.errors import ErrorClass
from tests.orders.conftest import NEW, StartApi
from tests.orders.samples import counts


async def test_one_guilty_row(start_api: StartApi, conn: AsyncConnection) -> None:
    """
    Of many orders placed at once only the one that the database refuses gets a 4xx; the others get their 201.
    """
    api = await start_api(ORDERS_WRITERS="1")
    await conn.execute("ALTER TABLE orders ADD CONSTRAINT nobody_orders_666 CHECK (customer_id <> '666') NOT VALID")
    customers = [str(666 if number in {0, 20} else number) for number in range(40)]

    answers = await asyncio.gather(
        *(api.client.post("/orders", json={**NEW, "customer_id": customer}) for customer in customers)
    )

    assert [422 if customer == "666" else 201 for customer in customers] == [each.status_code for each in answers]
    assert answers[0].json()["detail"].startswith('new row for relation "orders" violates check constraint')
    assert await counts(conn) == (38, 38, 0)
    metrics = (await api.client.get("/metrics")).text
    guilty = f'orders_batch_reruns_total{{statement="write",why="{ErrorClass.ONE_IS_GUILTY.name.lower()}"}}'
    assert guilty in metrics, "a batch of several was refused, and taken apart"
