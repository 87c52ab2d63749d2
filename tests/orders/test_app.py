import asyncio

import psycopg
from psycopg import AsyncConnection

from tests.eventually import eventually
from tests.orders.conftest import NEW, Api, StartApi


async def test_five_connections(start_api: StartApi, conn: AsyncConnection) -> None:
    """
    Whatever it is asked to do, an api has at most five connections to the database.
    """
    api = await start_api(ORDERS_MAX_OUTBOX_AGE="60")
    order = await api.place()

    async def everything() -> None:
        for method, path in (("POST", "/orders"), ("GET", "/orders"), ("POST", f"/orders/{order['order_id']}/cancel")):
            await api.client.request(method, path, json=NEW)
        await api.client.get(f"/orders/{order['order_id']}", headers={"Prefer": "wait=1"})

    await asyncio.gather(*(everything() for _ in range(30)))

    async def five() -> bool:
        cursor = await conn.execute(
            "SELECT application_name FROM pg_stat_activity "
            "WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        names = sorted(row[0] for row in await cursor.fetchall())
        return names == ["orders-notify", "orders-read", "orders-watch", "orders-write", "orders-write"]

    await eventually(five)  # a lone request waits for none but the first writer's


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


async def test_both_ways_to_a_placement(api: Api) -> None:
    """
    The straight way of a placement and Litestar's own, which another spelling of the path takes, answer alike.
    """
    for content, type_ in ((b"{}", "application/json"), (b"{", "application/json"), (b"x", "text/plain"),
                           (b" " * ((1 << 20) + 1), "application/json")):  # fmt: skip
        answers = [
            await api.client.post(path, content=content, headers={"Content-Type": type_, "X-Request-ID": "same"})
            for path in ("/orders", "/orders/")
        ]
        assert answers[0].status_code == answers[1].status_code >= 400
        assert answers[0].content == answers[1].content
        assert {**answers[0].headers, "date": ""} == {**answers[1].headers, "date": ""}
    placed = [await api.client.post(path, json=NEW) for path in ("/orders", "/orders/")]
    assert [each.status_code for each in placed] == [201, 201]
    assert [list(each.headers) for each in placed] == [list(placed[0].headers)] * 2
