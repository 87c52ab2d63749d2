"""The column `orders.attempt_log`: the last attempts at an order that was not done at its first one, for operators.

Statements that end an attempt append to it with the SQL function `log_attempt`, in the UPDATE that they make anyway:
`started` is the claim's `updated_at`. An order that is done at its first attempt has no log.
"""

import os
import socket
from datetime import datetime
from typing import LiteralString
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

COLUMNS_ARE_THERE: LiteralString = "SELECT attempt_log FROM orders LIMIT 0"

READ: LiteralString = "SELECT coalesce(attempt_log, '[]')::text FROM orders WHERE order_id = %b"

HOST = socket.gethostname()


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt, or another thing that happened to the order between two; docs/worker.md lists the outcomes."""

    attempt: int  # the number that fences the attempt: the order's `attempts` then
    started: datetime | None
    ended: datetime
    outcome: str
    worker: str | None
    error: str | None = None  # the class of the handler's error
    reason: str | None = None
    next_try: datetime | None = None


_decode = msgspec.json.Decoder(list[Attempt]).decode


def own_name() -> str:
    """Return the name of this process in the log: host and pid."""
    return f"{HOST}/{os.getpid()}"


async def read(conn: AsyncConnection, order_id: UUID) -> list[Attempt] | None:
    """Return the log of an order, the oldest entry first; None if there is no such order."""
    row = await (await conn.execute(READ, [order_id])).fetchone()
    return None if row is None else _decode(row[0])
