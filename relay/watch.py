"""Listens for the writers' notifications and counts the backlog, on a connection beside the claims.

Writers notify from a connection of their own, after the commit and debounced, so that an idle relay sees an event
within milliseconds. A notification that is lost costs the poll interval and nothing else. The count runs here, and not
in the loop, so that the backlog is known while the broker is away, too.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import LiteralString

import psycopg

from relay import outbox_table
from relay.backoff import backoff_seconds
from relay.database import Connection, DatabaseLost, ask_for_writes, connect, deadline, translated
from relay.outbox_table import WaitingCount
from relay.severing import close
from relay.state import RelayState

log = logging.getLogger("relay")

COUNT_SECONDS = 1.0
DEADLINE_SECONDS = 3.0
COUNTED = 20_000  # rows; a larger backlog is estimated from the ids, since counting it costs too much
SLICE_PAGES = 2000  # of 8 KiB; with more pages of parked rows, their count lasts as many seconds as it has slices
COUNTED_IDS = 200_000  # above the floor; while that has not risen yet, the rows sent lie there too

SESSION: LiteralString = """
    SET tcp_user_timeout = '3s';
    SET statement_timeout = '3s';
    SET plan_cache_mode = force_custom_plan;
    SET enable_seqscan = off;
    SET enable_bitmapscan = off;
    SET jit = off;
    LISTEN outbox
"""


async def watch(url: str, state: RelayState, wake: asyncio.Event, stop: asyncio.Event) -> None:
    """Set `wake` whenever a writer has notified, and keep the state's counts up to date, until `stop` is set."""

    def heard(_: object) -> None:
        state.woken.inc()
        wake.set()

    failures = 0
    while not stop.is_set():
        conn: Connection | None = None
        try:
            conn = await connect(url, "relay-watch", SESSION)
            failures, count = 0, _WaitingCounter()
            conn.add_notify_handler(heard)  # for those that come with the answers to a count
            wake.set()  # for notifications that were sent before LISTEN
            while not stop.is_set():
                with deadline(conn, DEADLINE_SECONDS):
                    await _count(conn, state, count)
                state.database = "connected"
                await _listen(conn, heard)
        except DatabaseLost as lost:
            failures += 1
            if state.database != "disconnected":
                log.warning("database lost: %s", lost)
            state.database = "disconnected"
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), backoff_seconds(failures, 0.1, 1.0))
        finally:
            if conn is not None:
                await close(conn)


async def _listen(conn: Connection, heard: Callable[[object], None]) -> None:
    """Call `heard` at each notification, until it is time to count again.

    psycopg's own `notifies` would wake ten times a second. Between two counts nothing but notifications comes here.
    """
    loop = asyncio.get_running_loop()
    lost: asyncio.Future[None] = loop.create_future()
    fileno = conn.fileno()

    def read() -> None:
        try:
            conn.pgconn.consume_input()
        except psycopg.Error as error:
            loop.remove_reader(fileno)
            if not lost.done():
                lost.set_exception(error)
        else:
            while notification := conn.pgconn.notifies():
                heard(notification)

    loop.add_reader(fileno, read)
    try:
        with translated(), contextlib.suppress(TimeoutError):
            await asyncio.wait_for(lost, COUNT_SECONDS)
    finally:
        loop.remove_reader(fileno)


class _WaitingCounter:
    """Counts what waits, a slice of the tables at each step: rows that have gone stay there until a vacuum."""

    def __init__(self) -> None:
        self.waiting = WaitingCount(0, 0, None)  # of the last round
        self._round = self.waiting
        self._page = 0

    async def go_on(self, conn: Connection) -> None:
        """Count the next slice; after the last one, begin again."""
        found, pages = await outbox_table.count_waiting(conn, self._page, SLICE_PAGES)
        self._round = self._round.plus(found)
        self._page += SLICE_PAGES
        if self._page >= pages:
            self.waiting, self._round, self._page = self._round, WaitingCount(0, 0, None), 0


async def _count(conn: Connection, state: RelayState, count: _WaitingCounter) -> None:
    await ask_for_writes(conn)
    saved = await outbox_table.read_mark(conn)
    above = max(state.floor, saved.mark) if saved.mark <= saved.last_id else 0
    upto = min(saved.last_id, above + COUNTED_IDS)
    pending = await outbox_table.count_pending(conn, above, upto, COUNTED)
    pending_rows, oldest = pending.rows, pending.oldest_seconds
    if pending_rows == COUNTED and pending.last_id is not None:
        pending_rows += saved.last_id - pending.last_id
    else:
        pending_rows += saved.last_id - upto
    state.mark_behind_rows = max(0, saved.last_id - max(state.mark, saved.mark))
    xid = state.mark_held_by_xid
    state.mark_held_by = None if xid is None else await outbox_table.holder(conn, xid)
    await count.go_on(conn)
    waiting = count.waiting
    if waiting.oldest_parked_id is not None:
        oldest = max(oldest or 0.0, await outbox_table.age_of(conn, waiting.oldest_parked_id) or 0.0)
    state.backlog = pending_rows + waiting.parked_rows
    state.parked_rows = waiting.parked_rows
    state.blocked_keys = waiting.blocked_keys
    state.oldest_pending_seconds = max(0.0, oldest or 0.0)
