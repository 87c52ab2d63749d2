"""What listing orders by status costs, and what each way to do it costs a placement: `python -m dev.bench.listing`.

Fills a table like ours (DATABASE_URL names a server to make a database on), walks a placed order through its life
under each design, and lists the rarest status. The numbers stand in docs/decisions.md.
"""

import os
import statistics
import time
from typing import LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg

ORDERS = 200_000
BATCHES = 60
BATCH_ROWS = 64

TABLE: LiteralString = """
    CREATE TABLE listed (
        order_id uuid PRIMARY KEY, client text NOT NULL DEFAULT '', status text NOT NULL DEFAULT 'placed',
        version integer NOT NULL DEFAULT 1, lines json, updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
    ) WITH (fillfactor = 80)
"""
# As UUIDv7: ascending, with a random tail.
FILL: LiteralString = """
    INSERT INTO listed (order_id, status, lines)
    SELECT (lpad(to_hex(1000000 + n), 12, '0') || '7000' || substr(md5(n::text), 1, 16))::uuid,
           CASE WHEN n %% (%s::integer / 5) = 1 THEN 'failed' ELSE 'done' END, json_build_object('x', repeat('y', 500))
    FROM generate_series(1, %s::integer) AS n
"""
PLACE: LiteralString = """
    INSERT INTO listed (order_id, lines)
    SELECT (lpad(to_hex(100000000 + n), 12, '0') || '7000' || substr(md5(n::text), 1, 16))::uuid,
           json_build_object('x', repeat('y', 500))
    FROM generate_series(%s::integer, %s::integer) AS n RETURNING order_id
"""
CHANGE: LiteralString = """
    UPDATE listed SET status = %s, version = version + 1, updated_at = clock_timestamp() WHERE order_id = ANY(%s)
"""
SIDE: LiteralString = """
    CREATE TABLE by_status (status text, order_id uuid, PRIMARY KEY (status, order_id)) WITH (fillfactor = 80)
"""
SIDE_ADD: LiteralString = "INSERT INTO by_status SELECT 'placed', unnest(%s::uuid[])"
SIDE_MOVE: LiteralString = "UPDATE by_status SET status = %s WHERE status = %s AND order_id = ANY(%s)"
PARTIAL: LiteralString = "CREATE INDEX ON listed (status, order_id) WHERE status <> 'done'"
WALK: LiteralString = """
    WITH walked AS MATERIALIZED (
        SELECT order_id, status FROM listed WHERE order_id < %s ORDER BY order_id DESC LIMIT 8000
    )
    SELECT (SELECT order_id FROM walked ORDER BY order_id LIMIT 1), count(*) FROM walked WHERE status = 'failed'
"""


def measure(conn: psycopg.Connection, design: str) -> None:
    """Print what an order's three statements cost under a design, and how many of its changes were HOT."""
    conn.execute("DROP TABLE IF EXISTS listed")
    conn.execute("DROP TABLE IF EXISTS by_status")
    conn.execute(TABLE)
    conn.execute(SIDE)
    conn.execute(FILL, [ORDERS, ORDERS])
    if design == "partial index":
        conn.execute(PARTIAL)
    conn.execute("VACUUM ANALYZE listed")
    conn.execute("CHECKPOINT")
    before = conn.execute("SELECT pg_current_wal_lsn()").fetchone()
    times = []
    for batch in range(BATCHES):
        started = time.perf_counter()
        with conn.transaction():
            rows = conn.execute(PLACE, [batch * BATCH_ROWS, (batch + 1) * BATCH_ROWS - 1]).fetchall()
            ids = [row[0] for row in rows]
            if design == "table beside it":
                conn.execute(SIDE_ADD, [ids])
        for old, new in (("placed", "processing"), ("processing", "done")):
            with conn.transaction():
                conn.execute(CHANGE, [new, ids])
                if design == "table beside it":
                    conn.execute(SIDE_MOVE, [new, old, ids])
        times.append((time.perf_counter() - started) / BATCH_ROWS * 1e6)
    wal = conn.execute("SELECT pg_current_wal_lsn() - %s::pg_lsn", before).fetchone()
    conn.execute("SELECT pg_stat_force_next_flush()")
    hot = conn.execute("SELECT n_tup_hot_upd, n_tup_upd FROM pg_stat_user_tables WHERE relname = 'listed'").fetchone()
    assert wal is not None
    assert hot is not None
    print(
        f"{design:16} {statistics.median(times):6.1f} us/order (min {min(times):.1f}, max {max(times):.1f}), "
        f"{wal[0] / BATCHES / BATCH_ROWS:6.0f} B of WAL/order, HOT {hot[0]} of {hot[1]}"
    )


def walk(conn: psycopg.Connection) -> None:
    """Print what it costs to walk over all orders in search of the rarest status."""
    after = "ffffffff-ffff-ffff-ffff-ffffffffffff"
    times = []
    found = 0
    while True:
        started = time.perf_counter()
        row = conn.execute(WALK, [after]).fetchone()
        times.append((time.perf_counter() - started) * 1e3)
        assert row is not None
        if row[0] is None:
            break
        after, found = str(row[0]), found + row[1]
    print(
        f"walk             {statistics.median(times):.1f} ms for a step of 8,000 orders (max {max(times):.1f}); "
        f"{sum(times):.0f} ms for all {ORDERS:,}, {found} found"
    )


def main() -> None:
    """Measure each design in a database of its own."""
    url = os.environ["DATABASE_URL"]
    with psycopg.connect(url, autocommit=True) as server:
        server.execute("DROP DATABASE IF EXISTS bench_listing")
        server.execute("CREATE DATABASE bench_listing")
    own = urlunsplit(urlsplit(url)._replace(path="/bench_listing"))
    try:
        with psycopg.connect(own, autocommit=True) as conn:
            for design in (
                "nothing",
                "partial index",
                "table beside it",
                "nothing",
                "partial index",
                "table beside it",
            ):
                measure(conn, design)
            walk(conn)
    finally:
        with psycopg.connect(url, autocommit=True) as server:
            server.execute("DROP DATABASE bench_listing WITH (FORCE)")


if __name__ == "__main__":
    main()
