"""Keep the partitions: some made ahead, those past their retention dropped whole.

A partition goes only when the persisted mark has passed all of its ids: then nothing is pending in it, and no writer is
left who could still add to it. It is looked at once more under a lock after it was detached, since an operator may have
requeued a row of it meanwhile; then it comes back.
"""

import asyncio
import contextlib
import logging

from psycopg import sql

from relay import outbox_partitions
from relay.database import Connection, DatabaseLost, connect, deadline
from relay.outbox_partitions import Partition
from relay.settings import Settings
from relay.severing import close
from relay.state import RelayState

log = logging.getLogger("relay")

ROUND_SECONDS = 30.0  # a DETACH waits for transactions elsewhere; the next round takes up what this one left


async def keep(settings: Settings, state: RelayState, stop: asyncio.Event) -> None:
    """Look after the partitions until told to stop: one relay at a time does."""
    while not stop.is_set():
        try:
            await look_after(settings, state)
        except DatabaseLost as lost:
            log.warning("partitions left for the next round: %s", lost)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), settings.upkeep_seconds)


async def look_after(settings: Settings, state: RelayState) -> None:
    """Make what is missing ahead, drop what is past its time."""
    conn = await connect(settings.database_url, "relay-upkeep", outbox_partitions.SESSION)
    try:
        with deadline(conn, ROUND_SECONDS):
            if not await outbox_partitions.be_the_keeper(conn):
                return
            state.partitions_made.inc(await outbox_partitions.add(conn, settings.partitions_ahead))
            await _clear_detached(conn, state)
            mark = await outbox_partitions.saved_mark(conn)
            for partition in await outbox_partitions.partitions(conn):
                if partition.high - 1 > mark:
                    return
                if partition.detaching or await _is_past(conn, partition, settings.retention_seconds):
                    await outbox_partitions.detach(conn, partition)
                    await _drop(conn, partition.table, state)
    finally:
        await close(conn)


async def _is_past(conn: Connection, partition: Partition, retention_seconds: float) -> bool:
    if await outbox_partitions.has_parked(conn, partition):
        return False
    age = await outbox_partitions.newest_age(conn, partition)
    return age is None or age > retention_seconds


async def _clear_detached(conn: Connection, state: RelayState) -> None:
    for table in await outbox_partitions.detached(conn):
        await _drop(conn, table, state)


async def _drop(conn: Connection, table: sql.Identifier, state: RelayState) -> None:
    if await outbox_partitions.drop_if_settled(conn, table):
        state.partitions_dropped.inc()
        log.info("dropped %s after its retention", table.as_string())
    else:
        low, high = await outbox_partitions.bounds_of(conn, table)
        await outbox_partitions.attach(conn, table, low, high)
        log.warning("put %s back: a row of it is to be sent again", table.as_string())
