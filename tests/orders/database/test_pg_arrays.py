"""Arrays arrive as they were sent."""

from datetime import UTC, datetime, timedelta
from typing import LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg import AsyncConnection

from orders.database import pg_arrays
from orders.database.pg_arrays import PgArray

NEWEST = datetime(2026, 11, 23, 12, 30, 15, 123456, tzinfo=UTC)

CASES: list[tuple[LiteralString, PgArray, list[object]]] = []


def case(sql: LiteralString, column: PgArray, expected: list[object]) -> None:
    CASES.append((sql, column, expected))


IDS = [UUID("f47ac10b-58cc-4372-a567-0e02b2c3d479"), UUID(int=0), UUID(int=2**128 - 1)]
case("SELECT %b::uuid[]", pg_arrays.uuids(IDS), list(IDS))
case("SELECT %b::uuid[]", pg_arrays.uuids([]), [])
TEXTS = ["", None, "Teelicht, weiß", '{},"\\', "x" * 100_000, "NULL"]
case("SELECT %b::text[]", pg_arrays.texts(TEXTS), list(TEXTS))
case("SELECT %b::text[]", pg_arrays.texts([None, None]), [None, None])
BLOBS = [b"", None, bytes(range(256))]
case("SELECT %b::bytea[]", pg_arrays.blobs(BLOBS), list(BLOBS))
NUMBERS = [0, None, 1, -1, 2**63 - 1, -(2**63)]
case("SELECT %b::bigint[]", pg_arrays.bigints(NUMBERS), list(NUMBERS))
TIMES = [NEWEST, datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), NEWEST - timedelta(microseconds=1)]
case("SELECT %b::timestamptz[]", pg_arrays.times(TIMES), list(TIMES))
JSONS = [b'[{"a":  1}]', None, b"null"]
case("SELECT %b::json[]::text[]", pg_arrays.jsons(JSONS), ['[{"a":  1}]', None, "null"])


@pytest.mark.parametrize(("sql", "column", "expected"), CASES)
async def test_round_trip(conn: AsyncConnection, sql: LiteralString, column: PgArray, expected: list[object]) -> None:
    """
    What PostgreSQL reads is what was written, whatever is in it.
    """
    cursor = await conn.execute(sql, [column])
    row = await cursor.fetchone()

    assert row is not None
    assert row[0] == expected


async def test_no_text(conn: AsyncConnection) -> None:
    """
    What no text column can hold is refused: by us, or by PostgreSQL as a fault of the data.
    """
    with pytest.raises(UnicodeEncodeError):
        pg_arrays.texts(["\ud800"])
    with pytest.raises(OverflowError):
        pg_arrays.bigints([2**63])
    with pytest.raises(psycopg.DataError):
        await conn.execute("SELECT %b::text[]", [pg_arrays.texts(["\0"])])
    with pytest.raises(psycopg.DataError):
        await conn.execute("SELECT %b::json[]", [pg_arrays.jsons([b"{"])])
