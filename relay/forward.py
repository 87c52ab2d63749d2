"""The loop of one claimer: claim rows, publish them wave by wave, record the outcome, move the low-water mark.

The claim is a transaction: it holds the locks of the shards and of the rows, and both vanish with the connection. It is
never open while the broker is away, and never for longer than `hold_seconds` and one wait for confirms.

While there is a backlog, a relay makes several claims in parallel, each by a claimer with connections of its own: one
claims and records while another waits for its confirms. To each other they are like two relays.
"""

import asyncio
import logging
import time
from typing import NamedTuple

from relay import outbox_table
from relay.backoff import backoff_seconds
from relay.claim_session import ClaimSession
from relay.database import STATEMENT_SECONDS, Connection, DatabaseLost, deadline
from relay.guard import Guard
from relay.message import Message
from relay.outbox_table import SHARDS, Look
from relay.outcome import Outcome
from relay.parallel_claims import Claimer, ParallelClaims
from relay.publisher import BrokerBlocked, BrokerLost, Publisher
from relay.rate_limit import RateLimit
from relay.routes import Routes
from relay.settings import Settings
from relay.state import RelayState
from relay.stored_mark import StoredMark
from relay.wave_publisher import WavePublisher
from relay.waves import most_of_key, sort_out

log = logging.getLogger("relay")

RETRY_FIRST_SECONDS, RETRY_LONGEST_SECONDS = 0.05, 0.5
GATHER_SECONDS = 0.01  # the longest pause after a claim in which rows gather for the next one
MANY_ROWS = 4  # after a claim of so many, others are certain to follow: no notification is waited for
LOOK_SECONDS = 1.0  # between two looks while notifications say that there are rows
AHEAD_ROWS = 10_000  # ids that may have been drawn since the last look


class Forwarded(NamedTuple):
    """The result of one batch."""

    rows: int  # claimed
    more: bool  # whether to go on without a pause
    seconds: float  # of the claim, from its beginning to its commit
    is_all: bool  # whether nothing is left that was committed before the claim and may go now


class Pause(NamedTuple):
    """How many seconds to wait before the next turn."""

    at_most: float  # a writer's notification ends it sooner,
    at_least: float = 0.0  # but not before so many


class Forwarder:
    """One claimer: moves messages from the outbox to the broker until it is stopped."""

    def __init__(
        self,
        settings: Settings,
        publisher: Publisher,
        guard: Guard,
        state: RelayState,
        wake: asyncio.Event,
        claims: ParallelClaims,
        *,
        is_first: bool = True,
    ) -> None:
        """`publisher` and `guard` are this claimer's own; `state`, `wake` and `claims` belong to the whole relay."""
        self._settings = settings
        self._publisher = publisher
        self._guard = guard
        self._state = state
        self._wake = wake
        self._session = ClaimSession(settings.database_url, state, is_first=is_first)
        self._claimer = Claimer(claims.backlog, state, is_first=is_first)
        self._mark = StoredMark(state, is_shown=is_first)
        self._routes = Routes(claims.health, state)
        self._waves = WavePublisher(publisher, guard, self._routes, self._session, state, settings.hold_seconds)
        self._rate_limit = RateLimit(settings.rate)
        self._looked: Look | None = None  # the last look of this session
        self._looked_at = 0.0  # in monotonic seconds
        self._rows_are_there = False  # by a notification since the last turn, or since that turn took many

    async def run(self, stop: asyncio.Event) -> None:
        """Forward until `stop` is set; the batch in hand is finished first. Raises SchemaMissing or SequenceCached."""
        failures = 0
        while not stop.is_set():
            if not self._claimer.has_work:
                await self._rest(stop)
                continue
            self._state.turned()
            try:
                pause = await self._turn(await self._ready())
                failures = 0
            except DatabaseLost as lost:
                failures += 1
                self._state.database_lost.inc()
                self._state.database = "disconnected"
                log.warning("database lost: %s", lost)
                await self._session.close()
                self._routes.forget()
            except BrokerLost as lost:
                failures += 1
                self._state.broker_lost.inc()
                self._state.broker = "blocked" if isinstance(lost, BrokerBlocked) else "disconnected"
                log.warning("broker lost: %s", lost)
                if not isinstance(lost, BrokerBlocked):
                    self._publisher.drop()
                # Without a broker there is no claim: no transaction, no share of the shards.
                await self._session.close()
                self._routes.forget()  # the server may crash while nobody is connected
            if failures:
                pause = Pause(
                    at_most=0.0, at_least=backoff_seconds(failures, RETRY_FIRST_SECONDS, RETRY_LONGEST_SECONDS)
                )
            await self._pause(pause, stop)
        await self._mark.save(self._session.conn)
        await self._session.close()
        self._guard.forget()

    async def _pause(self, pause: Pause, stop: asyncio.Event) -> None:
        """Wait for the time to pass or for a signal; after the least of it, also for a writer's notification."""
        if pause.at_least > 0 and not stop.is_set():
            await _first_of([stop], pause.at_least)
        if pause.at_most > pause.at_least and not stop.is_set() and not self._wake.is_set():
            await _first_of([stop, self._wake], pause.at_most - pause.at_least)
        self._rows_are_there = self._wake.is_set() or pause.at_most <= pause.at_least
        self._wake.clear()

    async def _rest(self, stop: asyncio.Event) -> None:
        """Leave everything to the first claimer until there is a backlog: an idle relay has one of each connection."""
        await self._mark.save(self._session.conn)
        await self._session.close()
        await self._publisher.close()
        self._guard.forget()
        await _first_of([stop, self._claimer.backlog], None)

    async def _ready(self) -> Connection:
        """Return the claiming connection, with the broker connected too."""
        if not self._publisher.is_connected:
            await self._publisher.connect()
        if self._publisher.is_blocked:
            raise BrokerBlocked("a memory or disk alarm holds the connection")
        self._state.broker = "connected"
        conn = self._session.conn
        if conn is None:
            saved = await self._session.open()
            self._mark.load(saved)
            self._looked = None
            conn = self._session.conn
            assert conn is not None
            await self._mark.move(conn, idle=True)  # before a claim, which would hold locks meanwhile
        return conn

    async def _turn(self, conn: Connection) -> Pause:
        """Look, forward one batch if there is any, move the mark; return how long to pause."""
        now = time.monotonic()
        await self._claimer.count_others(conn, now)
        await self._guard.complete_if_due(conn, now)
        look = await self._look(conn, now)
        is_new = look is self._looked
        any_waiting = self._routes.any_waiting(look.last_turn)
        if is_new and not any_waiting:
            self._routes.only_these_wait([], now)
        due = self._routes.next_try(now)
        longest = self._settings.poll_seconds if due is None else min(self._settings.poll_seconds, due - now)
        pause = Pause(longest)
        limited = self._rate_limit.wait(now)
        if limited:
            pause = Pause(min(self._settings.poll_seconds, limited))
        elif look.last_id > self._mark.id or any_waiting:
            batch = await self._forward_batch(look)
            pause = self._pause_after(batch, look, longest)
            self._rate_limit.record(batch.rows, now)
            if await self._mark.move(conn, idle=is_new and not batch.rows, rows=batch.rows):
                pause = Pause(0.0)
        else:
            self._claimer.found_nothing()
        # Also without rows: the keeper may drop a partition only when the mark that has passed it is saved.
        await self._mark.save_if_due(conn, now)
        return pause

    async def _look(self, conn: Connection, now: float) -> Look:
        """Look at the outbox; where rows are there anyway, only now and then."""
        looked = self._looked
        is_recent = looked and self._rows_are_there and now < self._looked_at + LOOK_SECONDS
        if looked and is_recent and not self._routes.any_waiting(looked.last_turn):
            return looked._replace(last_id=looked.last_id + AHEAD_ROWS)
        with deadline(conn, STATEMENT_SECONDS):
            self._looked = look = await outbox_table.look(conn)
        self._looked_at = time.monotonic()
        self._state.polls.inc()
        return look

    def _pause_after(self, batch: Forwarded, look: Look, longest: float) -> Pause:
        """Return how long to pause after a batch.

        When nothing is left, rows that are committed from now on are notified, or found by the poll. While they gather,
        the pause costs each of them little, and saves a claim for each.
        """
        if not batch.is_all:
            above_mark = look.last_id > self._mark.id
            return Pause(self._claimer.pause_after(batch.rows, more=batch.more, above_mark=above_mark, longest=longest))
        gather = min(batch.seconds, GATHER_SECONDS) if batch.rows else 0.0
        return Pause(gather if batch.rows >= MANY_ROWS else longest, at_least=gather)

    async def _forward_batch(self, look: Look) -> Forwarded:
        """Claim, publish, record, in one transaction."""
        began = time.monotonic()
        max_rows, max_bytes = self._rate_limit.limit(self._settings.batch_rows), self._settings.batch_bytes
        async with self._session.transaction() as conn:
            messages, shards = await self._claim(conn, look, max_rows, max_bytes)
            if not messages:
                self._claimer.record(full=False)
                is_all = shards == SHARDS and not self._routes.any_waiting(look.last_turn)
                return Forwarded(0, more=False, seconds=time.monotonic() - began, is_all=is_all)
            # Parked rows leave a quarter to others.
            full = len(messages) >= max_rows - max_rows // 4 or sum(len(m.body) for m in messages) * 2 > max_bytes
            # Only in a full claim does a hot key keep others from their turn.
            of_key = most_of_key(max_rows) if full else len(messages)
            with self._routes.being_tried({message.route for message in messages}):
                publish, park = sort_out(messages, self._routes.is_open, of_key)
                outcome, left, answered_at = await self._waves.publish(publish)
                outcome.wait_behind(park, left)
                with deadline(conn, STATEMENT_SECONDS):
                    await _record(conn, outcome)
        self._has_claimed(messages, parked=outcome.parked_rows > 0)
        clock_offset = look.database_time - self._looked_at
        self._state.recorded(outcome.latencies(answered_at + clock_offset), len(outcome.unrouted), outcome.parked_rows)
        self._claimer.record(full=full)
        is_all = shards == SHARDS and not (full or left or outcome.parked_rows)
        is_all = is_all and not self._routes.any_waiting(look.last_turn)
        more = full or outcome.changed_rows > 0
        return Forwarded(len(messages), more, seconds=time.monotonic() - began, is_all=is_all)

    def _has_claimed(self, messages: list[Message], *, parked: bool) -> None:
        """Let the last look know how far this claim went; it is worth nothing if rows were parked since."""
        if self._looked is not None:
            last_id = max(self._looked.last_id, messages[-1].id)
            self._looked = None if parked else self._looked._replace(last_id=last_id)

    async def _claim(self, conn: Connection, look: Look, max_rows: int, max_bytes: int) -> tuple[list[Message], int]:
        """Begin; claim parked rows that are due and pending ones behind them, of this claimer's share of the shards.

        Return the messages, and how many shards were taken.
        """
        began = time.monotonic()
        parked: list[Message] = []
        fresh: list[Message] = []
        with deadline(conn, STATEMENT_SECONDS):
            first, share = self._claimer.next_shards
            if self._routes.any_waiting(look.last_turn):
                shards = await outbox_table.begin_and_take(conn, first, share)
                if shards:
                    allowance = await self._routes.allowance(conn, look.last_turn, max_rows)
                    if allowance.keys:
                        most = most_of_key(max_rows), max_rows - max_rows // 4, max_bytes - max_bytes // 4
                        parked = await outbox_table.claim_parked(conn, shards, *allowance, *most)
                rows = max_rows - len(parked)
                size = max_bytes - sum(len(message.body) for message in parked)
                if shards and rows > 0 and size > 0 and look.last_id > self._mark.id:
                    fresh = await self._mark.claim(conn, look.last_id, rows, size)
            else:
                window = self._mark.window(look.last_id)
                shards, fresh = await outbox_table.begin_and_claim(conn, first, share, *window, max_rows, max_bytes)
                fresh = await self._mark.go_on(conn, fresh, window, look.last_id, max_rows, max_bytes)
        messages = parked + fresh
        self._session.stands()
        self._claimer.go_on()
        self._state.claimed(len(messages), len(shards), time.monotonic() - began)
        return messages, len(shards)


async def _record(conn: Connection, outcome: Outcome) -> None:
    """Write the outcome of a claim to its rows, and commit it, unless rows of it were parked before."""
    through = [message for message in (*outcome.sent, *outcome.unrouted) if message.parked]
    for reason, messages in outcome.park.items():
        await outbox_table.park(conn, outbox_table.ids_of(messages), reason)
    if outcome.block:
        await outbox_table.block(conn, outcome.block)
    sent, unrouted = outbox_table.ids_of(outcome.sent), outbox_table.ids_of(outcome.unrouted)
    if sent or unrouted:
        await outbox_table.settle(conn, sent, unrouted, and_commit=not through)
    if through:
        await outbox_table.remove_parked(conn, through)


async def _first_of(events: list[asyncio.Event], seconds: float | None) -> None:
    """Return when one of the events is set, or the time has passed."""
    waits = [asyncio.create_task(event.wait(), name="relay-pause") for event in events]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
