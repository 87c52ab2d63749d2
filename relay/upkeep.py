"""Keeps the partitions: makes some ahead, and drops those past their retention.

The relay drops a partition only when the persisted mark has passed all of its ids: then no row of it is pending, and no
writer is left that could add one. It detaches the partition first, and checks it once more under a lock, since an
operator may have requeued a row of it meanwhile; then the relay attaches it again.

The relay drops only partitions that it has recorded as detached by itself. A partition that an operator has detached,
to archive it, stays as it is.
"""

import asyncio
import contextlib
import logging

import psycopg

from relay import outbox_partitions
from relay.database import Connection, DatabaseLost, SchemaMissing, connect, deadline
from relay.error_text import first_line
from relay.outbox_partitions import Partition
from relay.settings import Settings
from relay.severing import close
from relay.state import RelayState

log = logging.getLogger("relay")

ROUND_SECONDS = 30.0  # a DETACH waits for other transactions; the next round finishes what this one could not


async def keep(settings: Settings, state: RelayState, stop: asyncio.Event) -> None:
    """Look after the partitions until `stop` is set; one relay at a time does. No failure here ends the forwarding."""
    while not stop.is_set():
        try:
            await look_after(settings, state)
        except (DatabaseLost, SchemaMissing, psycopg.Error) as error:
            log.warning("partitions left for the next round: %s", first_line(error))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), settings.upkeep_seconds)


async def look_after(settings: Settings, state: RelayState) -> None:
    """Make the missing partitions ahead, and drop those past their retention; raises DatabaseLost, SchemaMissing."""
    conn = await connect(settings.database_url, "relay-upkeep", outbox_partitions.SESSION)
    try:
        with deadline(conn, ROUND_SECONDS):
            if not await outbox_partitions.be_the_keeper(conn):
                return
            await outbox_partitions.forget_others(conn)
            await _clear_detached(conn, state)
            state.partitions_made.inc(await outbox_partitions.add(conn, settings.partitions_ahead))
            mark = await outbox_partitions.saved_mark(conn)
            for partition in await outbox_partitions.partitions(conn):
                if partition.high - 1 > mark:
                    return
                if partition.detaching and not partition.recorded:
                    _leave_alone(partition, state)
                elif partition.detaching or await _is_past(conn, partition, settings.retention_seconds):
                    await outbox_partitions.detach(conn, partition)
                    await _drop(conn, partition, state)
    finally:
        await close(conn)


async def _is_past(conn: Connection, partition: Partition, retention_seconds: float) -> bool:
    if await outbox_partitions.has_parked(conn, partition):
        return False
    age = await outbox_partitions.newest_age(conn, partition)
    return age is None or age > retention_seconds


async def _clear_detached(conn: Connection, state: RelayState) -> None:
    for partition in await outbox_partitions.detached(conn):
        if partition.recorded:
            await _drop(conn, partition, state)
        else:
            _leave_alone(partition, state)


def _leave_alone(partition: Partition, state: RelayState) -> None:
    if partition.name not in state.partitions_left:
        state.partitions_left.add(partition.name)
        log.warning(
            "%s was not detached by the relay, which leaves it as it is: attach it again, or archive and drop it",
            partition.name,
        )


async def _drop(conn: Connection, partition: Partition, state: RelayState) -> None:
    if await outbox_partitions.drop_if_settled(conn, partition):
        state.partitions_dropped.inc()
        log.info("dropped %s after its retention", partition.table.as_string())
    else:
        await outbox_partitions.attach(conn, partition)
        log.warning("put %s back: a row of it is to be sent again", partition.table.as_string())
