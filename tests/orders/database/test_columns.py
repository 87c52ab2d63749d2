"""Columns arrive as they were sent."""

from datetime import UTC, datetime, timedelta
from typing import LiteralString
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection

from orders.database import columns
from orders.database.columns import Column

NEWEST = datetime(2026, 11, 23, 12, 30, 15, 123456, tzinfo=UTC)

CASES: list[tuple[LiteralString, Column, list[object]]] = []


def case(sql: LiteralString, column: Column, expected: list[object]) -> None:
    CASES.append((sql, column, expected))


IDS = [uuid4(), UUID(int=0), UUID(int=2**128 - 1)]
case("SELECT %b::uuid[]", columns.uuids(IDS), list(IDS))
case("SELECT %b::uuid[]", columns.uuids([]), [])
TEXTS = ["", None, "Teelicht, weiß", '{},"\\', "x" * 100_000, "NULL"]
case("SELECT %b::text[]", columns.texts(TEXTS), list(TEXTS))
case("SELECT %b::text[]", columns.texts([None, None]), [None, None])
BLOBS = [b"", None, bytes(range(256))]
case("SELECT %b::bytea[]", columns.blobs(BLOBS), list(BLOBS))
NUMBERS = [0, None, 1, -1, 2**63 - 1, -(2**63)]
case("SELECT %b::bigint[]", columns.bigints(NUMBERS), list(NUMBERS))
TIMES = [NEWEST, datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), NEWEST - timedelta(microseconds=1)]
case("SELECT %b::timestamptz[]", columns.times(TIMES), list(TIMES))
JSONS = [b'[{"a":  1}]', None, b"null"]
case("SELECT %b::json[]::text[]", columns.jsons(JSONS), ['[{"a":  1}]', None, "null"])


@pytest.mark.parametrize(("sql", "column", "expected"), CASES)
async def test_round_trip(conn: AsyncConnection, sql: LiteralString, column: Column, expected: list[object]) -> None:
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
        columns.texts(["\ud800"])
    with pytest.raises(OverflowError):
        columns.bigints([2**63])
    with pytest.raises(psycopg.DataError):
        await conn.execute("SELECT %b::text[]", [columns.texts(["\0"])])
    with pytest.raises(psycopg.DataError):
        await conn.execute("SELECT %b::json[]", [columns.jsons([b"{"])])
