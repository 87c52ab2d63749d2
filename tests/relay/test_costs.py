"""What carrying costs where it can be counted: function calls and statements, the same on every machine.

A time says how busy a machine was, so times are for `make bench`. These counts have a little slack; whoever exceeds
them has added work for each message, or a round trip for each batch.
"""

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from types import FrameType

from psycopg import AsyncConnection
from psycopg._queries import PostgresQuery

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
from tests.relay.service import append_many

TRACEPARENT = '{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"}'
ROWS = 2000
ONCE = 10  # statements of a start: settings, the mark, the presence of a claimer, the sentinel of a queue


class Calls:
    """How many functions were called, and which statements were sent."""

    def __init__(self) -> None:
        self.count = 0
        self.statements: Counter[object] = Counter()

    def take(self, frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_call"):
            self.count += 1
            if event == "call" and frame.f_code is PostgresQuery.convert.__code__:
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
    A message of a backlog takes at most 75 function calls, from its claim to its mark, and a batch six statements.
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
    assert calls.statements[outbox_table.SETTLE_CLOSE] == batches
    for each in (outbox_table.TAKE_SHARDS, outbox_table.CLAIM, "BEGIN", "COMMIT"):
        assert batches <= calls.statements[each] <= batches + 1  # after the last full claim it looks once more
    by_time = sum(
        calls.statements[each]
        for each in (outbox_table.LOOK, outbox_table.WRITERS, outbox_table.LOWEST_PENDING, "SELECT 1")
    )
    assert calls.statements.total() - by_time <= 5 * (batches + 1) + ONCE
    assert calls.count / ROWS <= 75


def test_a_message_is_small() -> None:
    """
    A claimed message is one object that the garbage collector need not visit, and not one per field.
    """
    assert not hasattr(make_message(1), "__dict__")
    assert Message.__struct_config__.gc is False
