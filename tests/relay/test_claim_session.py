"""The proof that a claiming transaction stands, without a server."""

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any, cast

import pytest
from psycopg.pq import TransactionStatus

from relay import claim_session, outbox_table
from relay.claim_session import ClaimSession, SequenceCached
from relay.database import DatabaseLost
from relay.outbox_table import SavedMark
from relay.state import RelayState


class Server:
    """A connection that answers until it is lost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: int = 1) -> None:
        self.statements: list[str] = []
        self.info = SimpleNamespace(transaction_status=TransactionStatus.IDLE)
        self.is_lost = False
        self.closed = 0
        self._saved = SavedMark(40, cache, 50)
        monkeypatch.setattr(claim_session, "PROOF_SECONDS", 0.01)
        monkeypatch.setattr(claim_session, "deadline", lambda *_: contextlib.nullcontext())
        monkeypatch.setattr(claim_session, "connect", self._connect)
        monkeypatch.setattr(claim_session, "close", self._close)
        monkeypatch.setattr(outbox_table, "read_mark", self._read_mark)
        monkeypatch.setattr(outbox_table, "be_present", self._be_present)

    async def execute(self, statement: str) -> None:
        if self.is_lost:
            raise DatabaseLost("gone")
        self.statements.append(statement)
        status = {"BEGIN": TransactionStatus.INTRANS, "COMMIT": TransactionStatus.IDLE}
        self.info.transaction_status = status.get(statement, self.info.transaction_status)

    async def _connect(self, *_: Any) -> Any:
        return self

    async def _close(self, _: Any) -> None:
        self.closed += 1

    async def _read_mark(self, _: Any) -> SavedMark:
        return self._saved

    async def _be_present(self, *_: Any) -> None:
        pass


def session() -> ClaimSession:
    return ClaimSession("postgresql://nowhere", RelayState(), is_first=True)


async def test_a_sequence_with_a_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    With a cache the ids would not tell what is settled: the connection is closed, and the error says what to run.
    """
    server, claiming = Server(monkeypatch, cache=32), session()

    with pytest.raises(SequenceCached, match="has CACHE 32: run `ALTER SEQUENCE outbox_id_seq CACHE 1`"):
        await claiming.open()

    assert (claiming.conn, server.closed) == (None, 1)


async def test_a_transaction_ends_with_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    It is committed if all goes well and the caller has not done it; on a failure its connection is closed, and nothing
    is committed.
    """
    server, claiming = Server(monkeypatch), session()
    assert await claiming.open() == SavedMark(40, 1, 50)

    async with claiming.transaction() as conn:
        assert conn is cast(Any, server)
        await conn.execute("BEGIN")
    assert server.statements == ["BEGIN", "COMMIT"]
    async with claiming.transaction() as conn:
        await conn.execute("BEGIN")
        await outbox_table.commit(conn)
    assert server.statements == ["BEGIN", "COMMIT"] * 2
    with pytest.raises(ZeroDivisionError):
        async with claiming.transaction() as conn:
            await conn.execute(f"BEGIN{1 / 0}")

    assert server.statements == ["BEGIN", "COMMIT"] * 2
    assert (claiming.conn, server.closed) == (None, 1)


async def test_a_proof_is_asked_for_once_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A server that has just answered is not asked again.
    """
    server, claiming = Server(monkeypatch), session()
    await claiming.open()

    await claiming.prove(older_than=60)
    assert server.statements == []
    await claiming.prove()

    assert server.statements == ["SELECT 1"]


async def test_work_ends_when_the_transaction_does_not_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    While work goes on the transaction is proven again and again; once that fails, the work is cancelled.
    """
    server, claiming = Server(monkeypatch), session()
    await claiming.open()

    async def short() -> str:
        await asyncio.sleep(0.05)
        return "done"

    assert await claiming.while_proving(short(), "short") == "done"
    assert "SELECT 1" in server.statements
    cancelled = asyncio.Event()

    async def long() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    server.is_lost = True
    with pytest.raises(DatabaseLost):
        await claiming.while_proving(long(), "long")

    assert cancelled.is_set()
