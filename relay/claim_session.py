"""The database session of one claimer, and the proof that its claiming transaction stands."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from psycopg.pq import TransactionStatus

from relay import outbox_table
from relay.database import STATEMENT_SECONDS, Connection, connect, deadline
from relay.outbox_table import SavedMark
from relay.severing import close
from relay.state import RelayState

T = TypeVar("T")

PROOF_SECONDS = 0.3  # between two proofs: a fifth of the server's idle_in_transaction_session_timeout
PROOF_DEADLINE_SECONDS = 1.0


class SequenceCached(Exception):
    """The outbox's sequence hands out ids in blocks, so that the low-water mark would not be exact."""


class ClaimSession:
    """One connection at a time; every call on it has a deadline, and raises DatabaseLost past it."""

    def __init__(self, url: str, state: RelayState, *, is_first: bool) -> None:
        self._url = url
        self._state = state
        self._is_first = is_first
        self._conn: Connection | None = None
        self._proven_at = 0.0

    @property
    def conn(self) -> Connection | None:
        """The open connection, None if there is none."""
        return self._conn

    async def open(self) -> SavedMark:
        """Connect, and count as a claimer from now on; return the persisted low-water mark.

        Raises DatabaseLost, SchemaMissing, and SequenceCached if the sequence has a cache.
        """
        conn = await connect(self._url, "relay", outbox_table.SESSION)
        try:
            with deadline(conn, STATEMENT_SECONDS):
                saved = await outbox_table.read_mark(conn)
                await outbox_table.be_present(conn, self._is_first)
        except BaseException:
            await close(conn)
            raise
        if saved.sequence_cache != 1:
            await close(conn)
            raise SequenceCached(
                f"outbox_id_seq has CACHE {saved.sequence_cache}: "
                "run `ALTER SEQUENCE outbox_id_seq CACHE 1`, the order depends on it"
            )
        self._conn = conn
        self._state.database = "connected"
        self.stands()
        return saved

    async def close(self) -> None:
        """Close the connection, if there is one; its locks and its transaction end with it."""
        conn, self._conn = self._conn, None
        if conn is not None:
            await close(conn)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Within the block the caller begins a transaction, and may commit it; what stands at the end is committed.

        On any failure close the connection, and the transaction with it.
        """
        conn = self._conn
        assert conn is not None, "the session is not open"
        try:
            yield conn
            if conn.info.transaction_status != TransactionStatus.IDLE:
                with deadline(conn, STATEMENT_SECONDS):
                    await outbox_table.commit(conn)
        except BaseException:
            await self.close()
            raise

    def stands(self) -> None:
        """Record that the server has just answered on this session."""
        self._proven_at = time.monotonic()

    async def prove(self, older_than: float = 0.0) -> None:
        """Ask the server whether the transaction stands, unless it answered within the last `older_than` seconds.

        Raises DatabaseLost if it does not stand.
        """
        if time.monotonic() - self._proven_at < older_than:
            return
        assert self._conn is not None, "the session is not open"
        with deadline(self._conn, PROOF_DEADLINE_SECONDS):
            await self._conn.execute("SELECT 1")
        self.stands()

    async def while_proving(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Run `work` as a task, prove meanwhile that the transaction stands, and return its result.

        Raises DatabaseLost as soon as the transaction does not stand; `work` is then cancelled.
        """
        task = asyncio.create_task(work, name=name)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=PROOF_SECONDS)
                if not task.done():
                    await self.prove()
                    self._state.turned()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        return task.result()
