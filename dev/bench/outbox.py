"""Databases with much in their outbox, to be copied, and the transaction that somebody forgot."""

import contextlib
from collections.abc import Iterator
from typing import LiteralString

import psycopg

from dev.sandbox.servers import Servers
from dev.sandbox.system import upgrade
from tests import places

BODY_BYTES = 440  # with its other columns a row then has about 600 bytes, as one of ours
PARTITION_ROWS = 1_000_000

# Rows as orders writes them: a key of its own each, a traceparent, and a body of JSON.
FILL: LiteralString = """
    INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, headers, body)
    SELECT gen_random_uuid(), gen_random_uuid()::text, 'orders', 'order.placed', true,
           'application/cloudevents+json',
           jsonb_build_object('traceparent', '00-' || md5(n::text) || '-00f067aa0ba902b7-01'),
           convert_to('{"data":"' || repeat('x', %(body)s) || '"}', 'UTF8')
    FROM generate_series(1, %(rows)s) AS n
"""
FILL_SENT: LiteralString = """
    INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, body, state, settled_at)
    SELECT gen_random_uuid(), 'key', 'orders', 'order.placed', true, 'application/json', '{}', 'sent', now()
    FROM generate_series(1, %(rows)s)
"""


@contextlib.contextmanager
def template(its: Servers, statement: LiteralString = "SELECT", **values: object) -> Iterator[str]:
    """A database to be copied, with what the statement writes into its outbox; its name."""
    with places.database(its) as url:
        upgrade(url)
        with psycopg.connect(url, autocommit=True) as conn:
            rows = values.get("rows")
            if isinstance(rows, int) and rows >= PARTITION_ROWS:
                conn.execute("SELECT outbox_add_partitions(%s)", (rows // PARTITION_ROWS + 2,))
            conn.execute(statement, values)
            conn.execute("VACUUM ANALYZE outbox")
            conn.execute("CHECKPOINT")
        yield url.rpartition("/")[2]


@contextlib.contextmanager
def holding(database_url: str) -> Iterator[None]:
    """Hold the xmin horizon, as a report does that somebody forgot."""
    with psycopg.connect(database_url) as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        conn.execute("SELECT count(*) FROM outbox_mark")
        yield
        conn.rollback()
