"""What a journey left behind, and what has to be true of it: every accepted order done, no effect twice."""

from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import LiteralString
from uuid import UUID

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.rows import args_row

from dev.sandbox.system import System
from tests.eventually import eventually
from tests.journey.recorder import Heard, Recorder

SETTLE_SECONDS = 60.0

UNFINISHED: LiteralString = "SELECT status, count(*) FROM orders WHERE status <> 'done' GROUP BY status"

UNSETTLED: LiteralString = "SELECT state, count(*) FROM outbox WHERE settled_at IS NULL GROUP BY state"

# What the tables say of each order: its version, and its events in the order of their transactions.
STORIES: LiteralString = """
    SELECT o.order_id, o.version, o.attempts, array_agg(e.routing_key ORDER BY e.id),
           array_agg(e.event_id ORDER BY e.id)
    FROM orders o LEFT JOIN outbox e ON e.key = o.order_id::text
    GROUP BY o.order_id
"""

# The other way round: an event of an order that is not there.
ORPHANS: LiteralString = """
    SELECT key FROM outbox WHERE NOT EXISTS (SELECT FROM orders WHERE order_id = outbox.key::uuid)
"""


class Story(msgspec.Struct, frozen=True):
    """An order as its tables tell it."""

    order_id: UUID
    version: int
    attempts: int
    events: list[str | None]
    event_ids: list[UUID]


class Trace:
    """The files that the handler writes, beside the tables and the events."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._gate = folder / "gate-is-closed"

    @property
    def settings(self) -> dict[str, str]:
        """What the worker has to be told."""
        return {"ORDERS_HANDLER": "tests.journey.handlers:work", "JOURNEY_FOLDER": str(self.folder)}

    def close_gate(self) -> None:
        """Let every handler wait before its effect."""
        self._gate.touch()

    def open_gate(self) -> None:
        self._gate.unlink()

    def count(self, step: str) -> Counter[UUID]:
        """How often each order came to this step: `started` or `effects`."""
        try:
            return Counter(UUID(line) for line in (self.folder / step).read_text().splitlines())
        except FileNotFoundError:
            return Counter()

    async def check(
        self, system: System, accepted: Collection[UUID], recorder: Recorder | None = None, *, handler: bool = True
    ) -> dict[UUID, Story]:
        """Wait until all is settled; then hold the promises against everything that was left behind, and return it."""
        async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as conn:
            stories = await settled(conn)
            assert await rows(conn, ORPHANS) == []
        assert set(accepted) <= stories.keys(), "an order that was accepted is not there"
        assert {("order.placed", "order.done")} == {tuple(story.events) for story in stories.values()}
        assert {3} == {story.version for story in stories.values()}, "placed, processing, done: nothing else"
        if handler:
            assert dict.fromkeys(stories, 1) == self.count("effects"), "an effect is missing, or came twice"
        if recorder is not None:
            await recorder.heard_all({event_id for story in stories.values() for event_id in story.event_ids})
            check_stream(stories, recorder.heard)
        return stories


async def settled(conn: AsyncConnection) -> dict[UUID, Story]:
    """Every order's story, once each is done and each of its events is through."""

    async def nothing_is_left() -> bool:
        left = await rows(conn, UNFINISHED) + await rows(conn, UNSETTLED)
        assert left == []
        return True

    await eventually(nothing_is_left, SETTLE_SECONDS)
    async with conn.cursor(row_factory=args_row(Story)) as cursor:
        return {story.order_id: story for story in await (await cursor.execute(STORIES)).fetchall()}


def check_stream(stories: dict[UUID, Story], heard: list[Heard]) -> None:
    """Whoever listens hears each event, the first time in the order of the transactions; repeats may follow."""
    first: dict[UUID, list[UUID]] = defaultdict(list)
    for event in heard:
        assert event.message_id == str(event.envelope.id)
        assert event.delivery_mode == 2
        if event.envelope.id not in first[event.envelope.data.order_id]:
            first[event.envelope.data.order_id].append(event.envelope.id)
    assert {order_id: story.event_ids for order_id, story in stories.items()} == first


async def rows(conn: AsyncConnection, statement: LiteralString) -> list[tuple[object, ...]]:
    """All rows of a query."""
    return await (await conn.execute(statement)).fetchall()
