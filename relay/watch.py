"""Count the backlog from a connection of its own, so that it is known while the broker is away too."""

import asyncio
import contextlib
import logging
from typing import LiteralString

from relay import outbox_table
from relay.database import Connection, DatabaseLost, ask_for_writes, close, connect, deadline
from relay.metrics import Vitals

log = logging.getLogger("relay")

WATCH_SECONDS = 1.0
DEADLINE_SECONDS = 3.0
COUNTED = 20_000  # exact up to here: counting more would cost more than it tells

SESSION: LiteralString = """
    SET tcp_user_timeout = '3s';
    SET statement_timeout = '3s';
    SET plan_cache_mode = force_custom_plan;
    SET enable_seqscan = off;
    SET enable_bitmapscan = off;
    SET jit = off
"""


async def watch(url: str, vitals: Vitals, stop: asyncio.Event) -> None:
    """Keep the vitals' counts up to date until told to stop."""
    conn: Connection | None = None
    while not stop.is_set():
        try:
            if conn is None:
                conn = await connect(url, "relay-watch", SESSION)
            with deadline(conn, DEADLINE_SECONDS):
                await _count(conn, vitals)
            vitals.database = "connected"
        except DatabaseLost as lost:
            if vitals.database != "disconnected":
                log.warning("database lost: %s", lost)
            vitals.database = "disconnected"
            if conn is not None:
                await close(conn)
                conn = None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), WATCH_SECONDS)
    if conn is not None:
        await close(conn)


async def _count(conn: Connection, vitals: Vitals) -> None:
    await ask_for_writes(conn)
    mark, _, last_value = await outbox_table.read_mark(conn)
    above = max(vitals.mark, mark) if mark <= last_value else 0
    pending, counted_to, oldest = await outbox_table.count_pending(conn, above, last_value, COUNTED)
    if pending == COUNTED and counted_to is not None:
        pending += last_value - counted_to
    parked, blocked, oldest_parked = await outbox_table.count_waiting(conn, COUNTED * 5)
    if oldest_parked is not None:
        oldest = max(oldest or 0.0, await outbox_table.age_of(conn, oldest_parked) or 0.0)
    vitals.backlog = pending + parked
    vitals.parked_rows = parked
    vitals.blocked_keys = blocked
    vitals.oldest_pending_seconds = max(0.0, oldest or 0.0)
