"""The worker's batched statements, with what belongs before and after them."""

import asyncio

import pytest
from psycopg import AsyncConnection

from orders.database.claim_orders import Claimed
from orders.database.finish_orders import finish_of
from orders.database.notify import RelayNotifier
from orders.database.worker_lock import WorkerLock
from orders.model.traceparent import continue_trace
from orders.work.batches import WorkBatches
from tests.eventually import eventually
from tests.orders.work_samples import STATUSES, place, rows, work_message


async def test_no_claim_without_the_lock(conn: AsyncConnection, database_url: str) -> None:
    """
    A claim waits until the worker holds its lock, and stores the lock's number.
    """
    [placed] = await place(conn)
    async with RelayNotifier(database_url) as notifier:
        worker_lock = WorkerLock(database_url)
        async with WorkBatches(database_url, worker_lock, notifier) as batches:
            claiming = asyncio.create_task(batches.claim(work_message(placed)))
            await eventually(batches.are_connected)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(claiming), 0.3)
            assert await rows(conn, STATUSES) == [("placed", 1)]

            async with worker_lock:
                assert isinstance(await claiming, Claimed)
                assert await rows(conn, "SELECT worker FROM orders") == [(worker_lock.number,)]


async def test_an_end_hints_the_relay(
    conn: AsyncConnection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The end of an order is an event, so the relay gets a late hint of it once it is committed; a claim gives none.
    """
    [placed] = await place(conn)
    hints: list[int] = []
    async with RelayNotifier(database_url) as notifier, WorkerLock(database_url) as worker_lock:
        monkeypatch.setattr(notifier, "later", hints.append)
        async with WorkBatches(database_url, worker_lock, notifier) as batches:
            claimed = await batches.claim(work_message(placed))
            assert isinstance(claimed, Claimed)
            assert hints == []

            finished = await batches.finish(finish_of(claimed, continue_trace(None)))

            assert finished is not None
            assert hints == [1]
            assert await rows(conn, STATUSES) == [("done", 1)]
