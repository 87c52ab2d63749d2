import asyncio
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from orders.api import listing
from tests.orders.conftest import NEW, Api


async def walk(api: Api, **query: Any) -> list[str]:
    """Every order of a list, page by page."""
    found: list[str] = []
    while True:
        answer = await api.client.get("/orders", params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += [order["order_id"] for order in page["orders"]]
        if page["next"] is None:
            return found
        query["after"] = page["next"]


async def test_newest_first(api: Api) -> None:
    """
    A walk finds every order once, the newest first, whatever the size of the pages.
    """
    placed = [(await api.place())["order_id"] for _ in range(7)]

    for limit in (1, 2, 6, 7, 8, 100):
        assert placed[::-1] == await walk(api, limit=limit)


async def test_the_last_page_knows_that_it_is_the_last(api: Api) -> None:
    """
    A page that ends with the list has no next one, also when it is full.
    """
    for _ in range(2):
        await api.place()

    assert (await api.client.get("/orders?limit=2")).json()["next"] is None


async def test_filters(api: Api) -> None:
    """
    Filters narrow the list, together as well.
    """
    ours = (await api.place(customer_id="a", reference="r"))["order_id"]
    cancelled = (await api.place(customer_id="a", reference="s"))["order_id"]
    await api.place(customer_id="b", reference="r")
    await api.client.post(f"/orders/{cancelled}/cancel")

    assert [cancelled, ours] == await walk(api, customer_id="a")
    assert [ours] == await walk(api, customer_id="a", reference="r")
    assert [cancelled] == await walk(api, status="cancelled")
    assert [ours] == await walk(api, customer_id="a", status="placed")
    assert await walk(api, reference="s", status="done") == []


async def test_a_rare_status_below_many_others(
    api: Api, conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A list by status finds what lies below thousands of others, and a page that ran out of time says where to go on.
    """
    rare = (await api.place())["order_id"]
    await api.client.post(f"/orders/{rare}/cancel")
    await conn.execute(
        """
        INSERT INTO orders (order_id, created_at)
        SELECT ('ffffffff-ffff-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, now() FROM generate_series(1, 20000) n
        """
    )
    answer = await api.client.get("/orders?status=cancelled&limit=1")
    assert ([rare], None) == ([order["order_id"] for order in answer.json()["orders"]], answer.json()["next"])

    monkeypatch.setattr(listing, "SCAN_SECONDS", 0)
    page = (await api.client.get("/orders?status=cancelled&limit=1")).json()
    assert page["orders"] == []
    assert page["next"] is not None
    assert [rare] == await walk(api, status="cancelled", limit=100)


async def test_a_walk_during_inserts(api: Api) -> None:
    """
    A walk misses and repeats none of the orders that were there at its start, while 1,000 more are placed.
    """
    before = [(await api.place())["order_id"] for _ in range(40)]
    inserting = asyncio.gather(*(api.client.post("/orders", json=NEW) for _ in range(1000)))

    found = await walk(api, limit=3)
    await inserting

    assert len(found) == len(set(found))
    assert before[::-1] == [order_id for order_id in found if order_id in set(before)]


async def test_a_page_is_bounded_in_bytes(api: Api) -> None:
    """
    Large orders come on several pages, each of them once.
    """
    lines = [
        {"sku": f"{n:064d}", "quantity": n + 1, "unit_price_minor": n, "description": f"{n * 7919:0200d}"}
        for n in range(1000)
    ]
    placed = [(await api.place(lines=lines))["order_id"] for _ in range(16)]

    page = (await api.client.get("/orders?limit=100")).json()
    assert 1 <= len(page["orders"]) < 16
    assert placed[::-1] == await walk(api, limit=100)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("status=lost", "status"),
        ("after=1", "after"), ("customer_id=", "customer_id"), ("reference=%00", "reference"), ("sort=x", "sort"),
        ("limit=1&limit=2", "limit"),
    ],
)  # fmt: skip
async def test_what_cannot_be_asked(api: Api, query: str, field: str) -> None:
    """
    A parameter that is wrong is named.
    """
    answer = await api.client.get(f"/orders?{query}")

    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert field == answer.json()["errors"][0]["field"]


async def test_no_index_mentions_the_status(conn: AsyncConnection) -> None:
    """
    Every change of status can be a HOT update.
    """
    cursor = await conn.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'orders'")
    definitions = [row[0] for row in await cursor.fetchall()]

    assert len(definitions) == 4
    written = ("status", "version", "attempts", "failures", "worker", "failure_reason", "updated_at", "finished_at")
    assert not [each for each in definitions if any(column in each for column in written)]


async def test_each_way_down_walks_an_index(conn: AsyncConnection) -> None:
    """
    No list reads the table, or sorts more than a window of it.
    """
    await conn.execute(
        """
        INSERT INTO orders (order_id, client, customer_id, currency, lines, total_minor, reference, created_at)
        SELECT gen_random_uuid(), 'shop-' || n % 3, 'c-' || n % 5, 'GBP', '[]', 0, 'r-' || n % 7, now()
        FROM generate_series(1, 5000) AS n
        """
    )
    await conn.execute("ANALYZE orders")
    for filtered, index in (
        ("client <> ''", "orders_by_client"),
        ("customer_id = 'c-1'", "orders_by_customer"),
        ("reference = 'r-1'", "orders_by_reference"),
        ("true", "orders_pkey"),
    ):
        client = "" if filtered == "true" else "client = 'shop-1' AND "
        cursor = await psycopg.AsyncCursor(conn).execute(  # the branches of orders_table.SCAN
            f"EXPLAIN SELECT order_id FROM orders WHERE {client}{filtered} "  # noqa: S608
            "AND order_id < 'ffffffff-ffff-ffff-ffff-ffffffffffff' ORDER BY order_id DESC LIMIT 50"
        )
        plan = "\n".join(row[0] for row in await cursor.fetchall())
        assert index in plan
        assert "Sort" not in plan
