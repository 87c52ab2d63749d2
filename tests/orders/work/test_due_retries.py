"""The clock of the retries, and what it survives."""

import pytest
from psycopg import AsyncConnection

from orders.database.postpone_orders import Postpone, postpone_orders
from orders.model.traceparent import continue_trace
from orders.work.due_retries import DueRetries
from tests.eventually import eventually
from tests.orders.work_samples import claim, place, rows, work_message

SENT = "SELECT count(*) FROM outbox WHERE exchange = ''"


async def postpone(conn: AsyncConnection, many: int) -> None:
    placed = await place(conn, many)
    await postpone_orders(
        conn,
        [
            Postpone(claimed, work_message(each), 0, each.event.body, continue_trace(None))
            for claimed, each in zip(await claim(conn, placed), placed, strict=True)
        ],
    )


async def test_due_retries_are_sent(conn: AsyncConnection, database_url: str) -> None:
    """
    What is due goes to the outbox, more than one batch of it too, and whoever carries it on is told.
    """
    told = 0

    def tell() -> None:
        nonlocal told
        told += 1

    await postpone(conn, 300)
    async with DueRetries(database_url, tell):

        async def all_sent() -> bool:
            return await rows(conn, SENT) == [(300,)]

        await eventually(all_sent)
    assert told == 2
    assert await rows(conn, "SELECT count(*) FROM retries") == [(0,)]


async def test_what_was_due_long_ago_is_sent(
    conn: AsyncConnection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    After an outage of everybody, retries that were due hours ago are found, slice by slice, and counted on the way.
    """
    monkeypatch.setattr("orders.work.due_retries.SLICE_PAGES", 5)
    await postpone(conn, 300)
    await conn.execute("UPDATE retries SET due_at = now() - interval '3 hours'")
    await postpone(conn, 1)
    await conn.execute(
        "UPDATE retries SET due_at = now() + interval '3 hours' WHERE due_at > now() - interval '1 hour'"
    )
    async with DueRetries(database_url, lambda: None) as retries:

        async def all_sent() -> bool:
            return await rows(conn, SENT) == [(300,)] and retries.waiting == 1

        await eventually(all_sent, 30)


async def test_the_outbox_has_no_partition(conn: AsyncConnection, database_url: str) -> None:
    """
    Where the next id has no partition, it is made, and the retries are sent.
    """
    await postpone(conn, 1)
    await conn.execute("SELECT setval('outbox_id_seq', 20000000)")
    async with DueRetries(database_url, lambda: None):

        async def is_sent() -> bool:
            return await rows(conn, SENT) == [(1,)]

        await eventually(is_sent)


async def test_its_connection_is_lost(conn: AsyncConnection, database_url: str) -> None:
    """
    The clock goes on after every loss of its connection.
    """
    async with DueRetries(database_url, lambda: None):
        for many in (1, 2):
            await postpone(conn, 1)

            async def is_sent(many: int = many) -> bool:
                return await rows(conn, SENT) == [(many,)]

            await eventually(is_sent)
            await conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'orders-retries' "
                "AND datname = current_database()"
            )
