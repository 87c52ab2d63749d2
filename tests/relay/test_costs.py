"""What carrying costs where it can be counted: function calls and statements, the same on every machine.

A time says how busy a machine was, so times are for `make bench`. These counts have a little slack; whoever exceeds
them has added work for each message, or a round trip for each batch.
"""

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator
from types import FrameType

import pytest
from psycopg import AsyncConnection
from psycopg._queries import PostgresClientQuery, PostgresQuery

from dev.bench.everyday import RequestCounter
from dev.sandbox.servers import Servers
from relay import outbox_table
from relay.forward import Forwarder
from relay.frames import Encoder
from relay.guard import Guard
from relay.message import Message
from relay.parallel_claims import ParallelClaims
from relay.publisher import Publisher
from relay.settings import Settings
from relay.state import RelayState
from tests.eventually import eventually
from tests.relay.messages import make_message
from tests.relay.service import append, append_many

TRACEPARENT = '{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"}'
CONVERT = {PostgresQuery.convert.__code__, PostgresClientQuery.convert.__code__}
ROWS = 2000
LONE = 20
BY_TIME = 8  # statements a second: a look, those of the mark, the count of claimers, proofs
ONCE = 10  # statements of a start: settings, the mark, the presence of a claimer, the sentinel of a queue


class Calls:
    """How many functions were called, and which statements were sent."""

    def __init__(self) -> None:
        self.count = 0
        self.wakeups = 0
        self.statements: Counter[object] = Counter()

    def take(self, frame: FrameType, event: str, function: object) -> None:
        if event in ("call", "c_call"):
            self.count += 1
            is_poll = getattr(function, "__name__", "") == "poll" and frame.f_code.co_name == "select"
            self.wakeups += is_poll and frame.f_locals["timeout"] != 0  # else the loop has more to do
            if event == "call" and frame.f_code in CONVERT:
                self.statements[frame.f_locals["query"]] += 1


@contextlib.contextmanager
def counted() -> Iterator[Calls]:
    """Count what this thread calls."""
    calls = Calls()
    before = sys.getprofile()
    sys.setprofile(calls.take)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def test_encoding() -> None:
    """
    A message with a traceparent is encoded in at most 36 function calls.
    """
    messages = [make_message(at, headers=TRACEPARENT) for at in range(100)]
    encoder = Encoder(1, 131072)
    encoder.encode(messages[0])

    with counted() as calls:
        for message in messages:
            encoder.encode(message)

    assert calls.count / len(messages) <= 36


async def test_a_batch(conn: AsyncConnection, database_url: str, topology: str) -> None:
    """
    A message of a backlog takes at most 75 function calls, from its claim to its mark, and a batch two round trips.
    """
    await append_many(conn, ROWS, keys=ROWS)
    settings = Settings(database_url=database_url, amqp_url=topology, batch_rows=500)
    state, stop = RelayState(), asyncio.Event()
    publisher = Publisher([topology], settings.confirm_seconds)
    forwarder = Forwarder(
        settings, publisher, Guard(settings, publisher), state, asyncio.Event(), ParallelClaims(settings)
    )
    forwarding = asyncio.create_task(forwarder.run(stop), name="forward")
    with counted() as calls:
        await eventually(lambda: state.published_rows == ROWS, 60)
    stop.set()
    await forwarding
    await publisher.close()

    batches = ROWS // settings.batch_rows
    assert calls.statements[outbox_table.SETTLE_CLOSE_AND_COMMIT] == batches
    # After the last full claim it looks once more.
    assert batches <= calls.statements[outbox_table.BEGIN_AND_CLAIM] <= batches + 1
    by_time = sum(
        calls.statements[each]
        for each in (outbox_table.LOOK, outbox_table.WRITERS, outbox_table.LOWEST_PENDING, "SELECT 1")
    )
    assert calls.statements.total() - by_time <= 2 * (batches + 1) + ONCE
    assert calls.count / ROWS <= 75


async def test_a_lone_event(
    conn: AsyncConnection, database_url: str, topology: str, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A lone event costs two round trips to the database, one request to the management interface, on a connection that is
    kept, and few wake-ups; what is done by time is little beside it.
    """
    assert servers.management_url is not None
    with RequestCounter(servers.management_url) as management:
        settings = Settings(
            database_url=database_url,
            amqp_url=topology,
            required_queues="orders.work",
            required_routes="orders/order.placed",
            management_url=management.url,
        )
        state, stop, wake, done = RelayState(), asyncio.Event(), asyncio.Event(), asyncio.Event()
        recorded = state.recorded

        def record(latencies: list[float], unrouted_rows: int, parked_rows: int) -> None:
            recorded(latencies, unrouted_rows, parked_rows)
            done.set()

        monkeypatch.setattr(state, "recorded", record)
        publisher = Publisher([topology], settings.confirm_seconds)
        forwarder = Forwarder(settings, publisher, Guard(settings, publisher), state, wake, ParallelClaims(settings))
        forwarding = asyncio.create_task(forwarder.run(stop), name="forward")

        async def carry(events: int) -> None:
            for _ in range(events):
                done.clear()
                await append(conn, "key")
                wake.set()
                await asyncio.wait_for(done.wait(), 10)

        await carry(LONE // 2)
        asked, connections = management.requests, management.connections
        began = time.monotonic()
        with counted() as calls:
            await carry(LONE)
        seconds = time.monotonic() - began
        stop.set()
        await forwarding
        await publisher.close()

    assert calls.statements[outbox_table.BEGIN_AND_CLAIM] <= LONE + 2
    assert calls.statements[outbox_table.SETTLE_CLOSE_AND_COMMIT] <= LONE
    ours = sum(calls.statements.values()) - LONE  # without the writer's
    assert ours <= 2 * LONE + 2 + BY_TIME * (2 + seconds)
    assert management.requests - asked <= LONE + 4 * (1 + seconds)
    assert management.connections - connections <= 1
    assert calls.wakeups / LONE <= 16


def test_a_message_is_small() -> None:
    """
    A claimed message is one object that the garbage collector need not visit, and not one per field.
    """
    assert not hasattr(make_message(1), "__dict__")
    assert Message.__struct_config__.gc is False
