import asyncio

import psycopg
from psycopg import AsyncConnection

from tests.eventually import eventually
from tests.orders.conftest import NEW, Api, StartApi


async def test_connections(start_api: StartApi, conn: AsyncConnection) -> None:
    """
    Whatever it is asked to do, an api has six connections to the database, and a seventh while it reads lists.
    """
    api = await start_api(ORDERS_MAX_OUTBOX_AGE="60")
    order = await api.place()

    async def everything() -> None:
        for method, path in (("POST", "/orders"), ("GET", "/orders"), ("POST", f"/orders/{order['order_id']}/cancel")):
            await api.client.request(method, path, json=NEW)
        await api.client.get(f"/orders/{order['order_id']}", headers={"Prefer": "wait=1"})

    async def names() -> list[str]:
        cursor = await conn.execute(
            "SELECT application_name FROM pg_stat_activity "
            "WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return sorted(row[0] for row in await cursor.fetchall())

    await asyncio.gather(*(everything() for _ in range(30)))
    assert "orders-list" in await names()

    async def six() -> bool:
        return await names() == [
            "orders-cancel",
            "orders-notify",
            "orders-read",
            "orders-watch",
            "orders-write",
            "orders-write",
        ]

    await eventually(six)  # a lone request waits for none but the first writer's


async def test_metrics(api: Api) -> None:
    """
    What has happened can be counted: placements, refusals by their kind, batches, connections.
    """
    before = (await api.client.get("/metrics")).text
    await api.place()
    await api.client.post("/orders", content=b"x")
    after = (await api.client.get("/metrics")).text

    def value(text: str, name: str) -> float:
        return sum(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))

    for name in ("orders_placed_total", 'orders_problems_total{status="415"}'):
        assert value(after, name) == value(before, name) + 1

    async def both_writers() -> bool:
        return value((await api.client.get("/metrics")).text, 'orders_batch_connections{statement="write"}') == 2

    await eventually(both_writers)


async def test_a_connection_that_is_lost_comes_back(api: Api, conn: AsyncConnection) -> None:
    """
    After every connection was ended by the server, each kind of request is served again.
    """
    order = await api.place()
    await conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name LIKE 'orders-%'"
    )

    assert (await api.client.post("/orders", json=NEW)).status_code == 201
    assert (await api.client.get("/orders")).status_code == 200
    assert (await api.client.post(f"/orders/{order['order_id']}/cancel")).status_code == 200
    with psycopg.connect(conn.info.dsn + f" password={conn.info.password}") as other:
        assert other.execute("SELECT count(*) FROM orders").fetchone() == (2,)
