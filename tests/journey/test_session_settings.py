"""A database, a role or an environment with settings of its own changes nothing that a client or an operator reads."""

import asyncio
import sys
from pathlib import Path

import httpx
import psycopg
from psycopg import sql

from dev.sandbox.servers import Servers
from dev.sandbox.system import Counts, System
from tests import places, warm
from tests.eventually import eventually
from tests.journey import shoppers

SETTINGS = {
    "client_encoding": "LATIN1",
    "datestyle": "SQL, DMY",
    "intervalstyle": "iso_8601",
    "timezone": "America/St_Johns",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "standard_conforming_strings": "off",
}
ORDER = {
    "customer_id": "Müller",
    "currency": "EUR",
    "lines": [{"sku": "85123A", "description": "Größe é😀", "quantity": 6, "unit_price_minor": 255}],
    "reference": "Straße 😀",
}


async def test_database_with_settings_of_its_own(servers: Servers, template: str, tmp_path: Path) -> None:
    """
    What was placed is what is read, listed, worked and sent again, whatever sessions get by default.
    """
    with places.database(servers, template) as url, places.vhost(servers) as vhost:
        with psycopg.connect(url, autocommit=True) as conn:
            for name, value in SETTINGS.items():
                database = sql.Identifier(conn.info.dbname)
                conn.execute(
                    sql.SQL("ALTER DATABASE {} SET {} = {}").format(database, sql.SQL(name), sql.Literal(value))
                )
        settings = {"PGCLIENTENCODING": "LATIN1"}
        with System(
            url, vhost, tmp_path, Counts(apis=1), settings=settings, users_url=servers.management_url,
            launch=warm.launch,
        ) as system:  # fmt: skip
            async with shoppers.client(system.base_url) as http:
                placed = await http.post("/orders", json=ORDER)
                assert placed.status_code == httpx.codes.CREATED
                where = placed.headers["Location"]

                async def is_done() -> bool:
                    return bool((await http.get(where)).json()["status"] == "done")

                await eventually(is_done, 20)
                read = (await http.get(where)).json()
                assert {name: read[name] for name in ORDER} == ORDER
                listed = (await http.get("/orders", params={"customer_id": "Müller"})).json()["orders"]
                assert [each["order_id"] for each in listed] == [read["order_id"]]
            requeue = [sys.executable, "-m", "relay", "requeue", "--since", "1h"]
            environ = {"DATABASE_URL": url, "PGCLIENTENCODING": "LATIN1"}
            done = await asyncio.to_thread(warm.run, requeue, env=environ)
            assert done.returncode == 0, done.stderr
        with psycopg.connect(url, client_encoding="UTF8") as conn:
            assert conn.execute("SELECT customer_id, reference FROM orders").fetchall() == [("Müller", "Straße 😀")]


async def test_schema_of_the_url(servers: Servers, tmp_path: Path) -> None:
    """
    With a schema named by the URL's `options` every program finds its tables there, and `public` stays empty.
    """
    with places.database(servers) as url, places.vhost(servers) as vhost:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("CREATE SCHEMA shop")
        there = f"{url}?options=-c%20search_path%3Dshop"
        with System(
            there, vhost, tmp_path, Counts(apis=1), with_nginx=False, users_url=servers.management_url,
            launch=warm.launch,
        ) as system:  # fmt: skip
            async with shoppers.client(system.base_url) as http:
                where = (await http.post("/orders", json=ORDER)).headers["Location"]

                async def is_done() -> bool:
                    return bool((await http.get(where)).json()["status"] == "done")

                await eventually(is_done, 20)
        with psycopg.connect(url) as conn:
            assert conn.execute("SELECT status FROM shop.orders").fetchall() == [("done",)]
            left = conn.execute("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace").fetchone()
        assert left == (0,)
