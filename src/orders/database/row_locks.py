"""Orders that another session has locked: they are skipped, tried again after a pause, and made visible.

A transition never waits for a row: its neighbours in the batch would wait with it. Locking each row with SKIP LOCKED
before its update costs WAL and a second look at each row, so the statements of the hot path lock as they update, give
up after LOCK_TIMEOUT, and skip for a while from then on.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar
from uuid import UUID

import msgspec
import psycopg
from prometheus_client import Gauge
from psycopg import AsyncConnection

log = logging.getLogger(__name__)

LOCK_TIMEOUT = {"lock_timeout": "50"}  # milliseconds, of a session whose batches use SkipLocked
SKIP_SECONDS = 5.0  # after the last locked row; then the next one delays a batch by LOCK_TIMEOUT again
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
LOG_SECONDS = 1.0  # a lock that is held for less is ordinary

LOCKED = Gauge("orders_locked", "Orders that wait, since another session has locked their rows", ["statement"])

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Busy(msgspec.Struct, frozen=True):
    """Another session has locked the order's row, or one that belongs to it. Nothing was changed: try again later."""

    order_id: UUID | None  # None: a dead letter without an order


class SkipLocked(Generic[Item, Answer]):
    """Runs a transition, which is harmless to repeat, so that no locked row delays the other rows of its batch.

    `run` gets a connection with LOCK_TIMEOUT, the batch, and whether it has to skip locked rows and answer Busy for
    them. It skips for SKIP_SECONDS after each batch that met a lock.
    """

    def __init__(self, run: Callable[[AsyncConnection, Sequence[Item], bool], Awaitable[Sequence[Answer]]]) -> None:
        self._run = run
        self._skip_until = float("-inf")

    async def __call__(self, conn: AsyncConnection, batch: Sequence[Item]) -> Sequence[Answer]:
        """Run the transition on a batch; return its answers."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._skip_until:
            try:
                return await self._run(conn, batch, False)
            except psycopg.errors.LockNotAvailable:
                self._skip_until = loop.time() + SKIP_SECONDS
        answers = await self._run(conn, batch, True)
        if any(isinstance(answer, Busy) for answer in answers):
            self._skip_until = loop.time() + SKIP_SECONDS
        return answers


class _Wait:
    """One caller's wait for an order's row."""

    __slots__ = ("is_logged", "last_try", "order_id", "since")

    def __init__(self, order_id: UUID | None) -> None:
        self.order_id = order_id
        self.since = self.last_try = time.monotonic()
        self.is_logged = False


class LockedOrders:
    """The orders that wait for their rows before a statement, for metrics, /status and the log.

    A caller names its wait by a token of its own.
    """

    def __init__(self, statement: str) -> None:
        self.statement = statement
        self._waits: dict[Hashable, _Wait] = {}
        LOCKED.labels(statement).set_function(lambda: len(self))

    def __len__(self) -> int:
        return len({wait.order_id for wait in self._waits.values()})

    def pause(self, token: Hashable, busy: Busy) -> float:
        """Count another try that found the row locked; return the seconds until the next try.

        The pause is the time waited so far, from FIRST_PAUSE_SECONDS up to LONGEST_PAUSE_SECONDS.
        """
        wait = self._waits.get(token)
        if wait is None:
            wait = self._waits[token] = _Wait(busy.order_id)
        wait.last_try = time.monotonic()
        waited = wait.last_try - wait.since
        if waited >= LOG_SECONDS and not wait.is_logged:
            if not self._is_logged(wait.order_id):
                log.warning(
                    "%s: order %s waits: another session has locked its row; pg_stat_activity shows who",
                    self.statement, wait.order_id,
                )  # fmt: skip
            wait.is_logged = True
        return min(max(waited, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)

    def end(self, token: Hashable) -> None:
        """End a wait, if there is one with this token."""
        wait = self._waits.pop(token, None)
        if wait is not None and wait.is_logged and not self._is_logged(wait.order_id):
            waited = time.monotonic() - wait.since
            log.info("%s: order %s waits no longer, after %.1f s", self.statement, wait.order_id, waited)

    def end_after(self, seconds: float) -> None:
        """End each wait whose last try is longer ago; for callers that hear only of the locked orders."""
        before = time.monotonic() - seconds
        for token in [token for token, wait in self._waits.items() if wait.last_try < before]:
            self.end(token)

    def _is_logged(self, order_id: UUID | None) -> bool:
        return any(wait.is_logged for wait in self._waits.values() if wait.order_id == order_id)
