"""Every call of the relay to PostgreSQL ends, whatever the server does."""

import asyncio
import resource

import pytest
from psycopg.pq import TransactionStatus

from relay.database import DatabaseLost, connect, deadline
from relay.severing import close
from tests.eventually import eventually


async def test_a_deadline_needs_no_descriptor(database_url: str) -> None:
    """
    With every descriptor in use a deadline still ends a call.
    """
    conn = await connect(database_url, "relay-test", "SELECT 1")

    async def wait_within_a_deadline() -> None:
        with deadline(conn, 0.5):
            await conn.execute("SELECT pg_sleep(30)")

    waiting = asyncio.create_task(wait_within_a_deadline())
    await eventually(lambda: conn.info.transaction_status == TransactionStatus.ACTIVE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(DatabaseLost):
            async with asyncio.timeout(10):
                await waiting
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await close(conn)
