"""The lock that shows a worker alive."""

import psycopg
import pytest

from orders.database.errors import ErrorClass, classify
from orders.database.worker_lock import WorkerLock
from tests.eventually import eventually


async def test_lock_that_is_not_held(database_url: str) -> None:
    """
    Whoever requires the lock is told in time that it is not there, so as to ask again: no connection is given up.
    """
    worker_lock = WorkerLock(database_url)
    with pytest.raises(psycopg.OperationalError) as caught:
        await worker_lock.require()
    assert classify(caught.value) is ErrorClass.RUN_AGAIN

    async with worker_lock:
        await eventually(worker_lock.held.is_set)
        await worker_lock.require()
