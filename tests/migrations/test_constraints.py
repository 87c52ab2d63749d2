"""The schema refuses the impossible, and the constraint's name says why."""

from typing import LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg import AsyncConnection, sql

ORDER = UUID("01900000-0000-7000-8000-000000000001")

INSERT_ORDER: LiteralString = """
    INSERT INTO orders (order_id, customer_id, currency, lines, total_minor, created_at)
    VALUES (%s, '17850', 'GBP', '[]', 255, now())
"""
INSERT_EVENT: LiteralString = """
    INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, headers, body)
    VALUES (%s, 'a', 'orders', 'order.placed', true, 'application/json', '{}', 'x')
"""

ORDERS = [
    ("status = 'lost'", "status_is_a_known_one"),
    ("version = 0", "versions_count_from_one"),
    ("attempts = -1", "attempts_and_failures_count_from_zero"),
    ("customer_id = NULL", "an_order_is_whole_or_has_neither_customer_nor_lines"),
    ("lines = NULL", "an_order_is_whole_or_has_neither_customer_nor_lines"),
    ("total_minor = -1", "a_total_is_never_negative"),
    ("status = 'processing'", "an_order_being_processed_has_a_worker_and_only_then"),
    ("worker = 7", "an_order_being_processed_has_a_worker_and_only_then"),
    ("status = 'failed', finished_at = now()", "a_failed_order_has_a_reason_and_only_then"),
    ("failure_reason = 'no card'", "a_failed_order_has_a_reason_and_only_then"),
    ("status = 'done'", "a_finished_order_has_a_time_and_only_then"),
    ("finished_at = now()", "a_finished_order_has_a_time_and_only_then"),
]
OUTBOX = [
    ("state = 'lost', settled_at = now()", "state_is_a_known_one"),
    ("state = 'sent'", "a_settled_row_has_a_time_and_only_then"),
    ("settled_at = now()", "a_settled_row_has_a_time_and_only_then"),
    ("state = 'unrouted', settled_at = now()", "a_required_row_is_never_unrouted"),
    ("key = ''", "a_key_has_1_to_255_characters"),
    ("key = repeat('a', 256)", "a_key_has_1_to_255_characters"),
    ("exchange = repeat('a', 128)", "an_exchange_has_at_most_127_bytes"),
    ("routing_key = repeat('ä', 128)", "a_routing_key_has_at_most_255_bytes"),
    ("content_type = repeat('a', 256)", "a_content_type_has_at_most_255_bytes"),
    ("headers = '[]'", "headers_are_a_json_object"),
]


async def refused(conn: AsyncConnection, table: str, change: LiteralString) -> str | None:
    """Return the name of the constraint that refuses a change of every row."""
    with pytest.raises(psycopg.errors.CheckViolation) as error:
        await conn.execute(sql.SQL("UPDATE {} SET ").format(sql.Identifier(table)) + sql.SQL(change))
    return error.value.diag.constraint_name


@pytest.mark.parametrize(("change", "constraint"), ORDERS)
async def test_orders(conn: AsyncConnection, change: LiteralString, constraint: str) -> None:
    """
    No order can be in a state that makes no sense.
    """
    await conn.execute(INSERT_ORDER, [ORDER])

    assert await refused(conn, "orders", change) == constraint


@pytest.mark.parametrize(("change", "constraint"), OUTBOX)
async def test_outbox(conn: AsyncConnection, change: LiteralString, constraint: str) -> None:
    """
    No outbox row can be what the relay could not carry, or would carry wrongly.
    """
    await conn.execute(INSERT_EVENT, [ORDER])

    assert await refused(conn, "outbox", change) == constraint


@pytest.mark.parametrize(
    ("key", "fingerprint", "constraint"),
    [
        ("", b"x" * 32, "a_key_has_1_to_255_characters"),
        ("a" * 256, b"x" * 32, "a_key_has_1_to_255_characters"),
        ("a", b"x" * 31, "a_fingerprint_is_a_sha256"),
    ],
)
async def test_keys(conn: AsyncConnection, key: str, fingerprint: bytes, constraint: str) -> None:
    """
    No key is stored that could not have been asked for.
    """
    with pytest.raises(psycopg.errors.CheckViolation) as error:
        await conn.execute(
            "INSERT INTO idempotency_keys (client, operation, key, fingerprint, order_id, answer)"
            " VALUES ('', 'place', %s, %s, %s, '')",
            [key, fingerprint, ORDER],
        )

    assert error.value.diag.constraint_name == constraint


async def test_tutorials_order(conn: AsyncConnection) -> None:
    """
    An order without customer and lines is a whole one, or it has none of the four.
    """
    await conn.execute("INSERT INTO orders (order_id, created_at) VALUES (%s, now())", [ORDER])

    row = await (await conn.execute("SELECT status, version, attempts FROM orders")).fetchone()
    assert row == ("placed", 1, 0)


async def test_row_beyond_the_partitions(conn: AsyncConnection) -> None:
    """
    A missing partition looks like a CHECK without a name: that is how a writer tells it from a fault of the row.
    """
    await conn.execute("SELECT setval('outbox_id_seq', 20000000)")

    with pytest.raises(psycopg.errors.CheckViolation) as error:
        await conn.execute(INSERT_EVENT, [ORDER])
    assert error.value.diag.constraint_name is None

    await conn.execute("SELECT outbox_add_partitions(1)")
    await conn.execute(INSERT_EVENT, [ORDER])


@pytest.mark.parametrize(
    ("table", "call"),
    [("outbox_mark", "outbox_add_partitions(1)"), ("outbox", "outbox_add_partitions(1)"), ("inbox", "inbox_keep(7)")],
)
async def test_a_callers_temporary_table(conn: AsyncConnection, table: LiteralString, call: LiteralString) -> None:
    """
    What runs with its owner's rights does not see the temporary tables of its caller.
    """
    right = await (await conn.execute(f"SELECT {call}")).fetchall()
    await conn.execute(f"CREATE TEMPORARY TABLE {table} (LIKE {table})")

    assert right == await (await conn.execute(f"SELECT {call}")).fetchall()


async def test_shard_follows_the_key(conn: AsyncConnection) -> None:
    """
    The table itself gives each row its shard: the same for the same key, and one of 64.
    """
    await conn.execute(
        "INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, headers, body)"
        " SELECT gen_random_uuid(), (n %% 500)::text, 'orders', 'order.done', false, 'application/json', '{}', 'x'"
        " FROM generate_series(1, 1000) n",
        [],
    )

    row = await (
        await conn.execute(
            "SELECT count(DISTINCT (key, shard)), min(shard) >= 0, max(shard) < 64, count(DISTINCT shard) > 32"
            " FROM outbox"
        )
    ).fetchone()
    assert row == (500, True, True, True)


async def test_status_changes_stay_on_their_page(conn: AsyncConnection) -> None:
    """
    No index mentions what a change of status writes, so that each of them is a HOT update.
    """
    await conn.execute(INSERT_ORDER, [ORDER])
    await conn.execute(
        "UPDATE orders SET status = 'processing', worker = 1, version = 2, updated_at = clock_timestamp()"
    )
    await conn.execute("UPDATE orders SET status = 'done', worker = NULL, version = 3, finished_at = clock_timestamp()")
    # The counts of this session; since PostgreSQL 15 they can be had at once.
    await conn.execute("SELECT pg_stat_force_next_flush()")

    row = await (
        await conn.execute("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'orders'")
    ).fetchone()
    assert row == (2, 2)
