"""An event is noted once, with its effect or not at all."""

import asyncio
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection

from orders.database import inbox
from orders.database.inbox import OutsideRetention
from orders.model.ids import uuid7
from tests.orders.work_samples import rows


async def test_repeat_is_told(conn: AsyncConnection) -> None:
    """
    The first time is the first time, for each consumer; every other is not.
    """
    event_id = uuid7()

    assert await inbox.is_first(conn, "mailer", event_id)
    assert not await inbox.is_first(conn, "mailer", event_id)
    assert await inbox.is_first(conn, "stock", event_id)


async def test_rolled_back_event_is_first_again(conn: AsyncConnection) -> None:
    """
    If the effect is not committed, the event has not been seen.
    """
    event_id = uuid7()
    async with conn.transaction():
        assert await inbox.is_first(conn, "mailer", event_id)
        raise psycopg.Rollback

    assert await inbox.is_first(conn, "mailer", event_id)


async def test_two_at_once(conn: AsyncConnection, database_url: str) -> None:
    """
    Of two deliveries at the same moment the second waits for the end of the first.
    """
    event_id = uuid7()
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        async with other.transaction():
            assert await inbox.is_first(other, "mailer", event_id)
            waiting = asyncio.create_task(inbox.is_first(conn, "mailer", event_id))
            assert not (await asyncio.wait([waiting], timeout=0.2))[0]
        assert not await waiting


@pytest.mark.parametrize(
    "event_id",
    [UUID("01700000-0000-7000-8000-000000000000"), UUID("ffffffff-ffff-7fff-bfff-ffffffffffff"), uuid4()],
    ids=["old", "from the future", "no UUIDv7"],
)
async def test_event_outside_retention_is_refused(conn: AsyncConnection, event_id: UUID) -> None:
    """
    An event that may have been seen and forgotten is not taken for a new one; its transaction can go on.
    """
    async with conn.transaction():
        with pytest.raises(OutsideRetention):
            await inbox.is_first(conn, "mailer", event_id)
        assert await rows(conn, "SELECT 1") == [(1,)]


async def test_old_days_are_dropped(conn: AsyncConnection) -> None:
    """
    Tidying keeps the last days and the next two, and says what the oldest id is that still fits.
    """
    partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'inbox'::regclass"
    assert await rows(conn, partitions) == [(10,)]

    floor = await inbox.keep(conn, 2)

    assert await rows(conn, partitions) == [(5,)]
    assert floor < uuid7()
    with pytest.raises(OutsideRetention):
        await inbox.is_first(conn, "mailer", UUID(int=floor.int - (1 << 80) | 7 << 76 | 8 << 60))
    await inbox.keep(conn, 7)
    assert await rows(conn, partitions) == [(10,)]
