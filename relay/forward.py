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
from relay.outbox_table import Look
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


class Forwarded(NamedTuple):
    """The result of one batch."""

    rows: int  # claimed
    more: bool  # whether to go on without a pause


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
                pause = backoff_seconds(failures, RETRY_FIRST_SECONDS, RETRY_LONGEST_SECONDS)
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
                pause = backoff_seconds(failures, RETRY_FIRST_SECONDS, RETRY_LONGEST_SECONDS)
            if pause > 0 and not stop.is_set():
                await self._pause(pause, stop, woken=failures == 0)
        await self._mark.save(self._session.conn)
        await self._session.close()
        self._guard.forget()

    async def _pause(self, seconds: float, stop: asyncio.Event, woken: bool) -> None:
        """Wait for the time to pass, for a signal, or, after a turn without a failure, for a writer's notification."""
        await _first_of([stop, self._wake] if woken else [stop], seconds)
        if woken:
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
            conn = self._session.conn
            assert conn is not None
            await self._mark.move(conn, idle=True)  # before a claim, which would hold locks meanwhile
        return conn

    async def _turn(self, conn: Connection) -> float:
        """Look, forward one batch if there is any, move the mark; return how many seconds to pause."""
        now = time.monotonic()
        await self._claimer.count_others(conn, now)
        await self._guard.complete_if_due(conn, now)
        with deadline(conn, STATEMENT_SECONDS):
            look = await outbox_table.look(conn)
        clock_offset = look.database_time - time.monotonic()
        self._state.polls.inc()
        any_waiting = self._routes.any_waiting(look.last_turn)
        if not any_waiting:
            self._routes.only_these_wait([], now)
        due = self._routes.next_try(now)
        pause = self._settings.poll_seconds if due is None else min(self._settings.poll_seconds, due - now)
        limited = self._rate_limit.wait(now)
        if limited:
            pause = min(self._settings.poll_seconds, limited)
        elif look.last_id > self._mark.id or any_waiting:
            batch = await self._forward_batch(look, clock_offset)
            above_mark = look.last_id > self._mark.id
            pause = self._claimer.pause_after(batch.rows, more=batch.more, above_mark=above_mark, longest=pause)
            self._rate_limit.record(batch.rows, now)
            if await self._mark.move(conn, idle=not batch.rows):
                pause = 0.0
        else:
            self._claimer.found_nothing()
        # Also without rows: the keeper may drop a partition only when the mark that has passed it is saved.
        await self._mark.save_if_due(conn, now)
        return pause

    async def _forward_batch(self, look: Look, clock_offset: float) -> Forwarded:
        """Claim, publish, record, in one transaction.

        `clock_offset`: seconds from our monotonic clock to the database's clock.
        """
        max_rows, max_bytes = self._rate_limit.limit(self._settings.batch_rows), self._settings.batch_bytes
        async with self._session.transaction() as conn:
            messages = await self._claim(conn, look, max_rows, max_bytes)
            if not messages:
                self._claimer.record(full=False)
                return Forwarded(0, more=False)
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
        self._state.recorded(outcome.latencies(answered_at + clock_offset), len(outcome.unrouted), outcome.parked_rows)
        self._claimer.record(full=full)
        return Forwarded(len(messages), more=full or outcome.changed_rows > 0)

    async def _claim(self, conn: Connection, look: Look, max_rows: int, max_bytes: int) -> list[Message]:
        """Claim parked rows that are due, and pending ones behind them, of this claimer's share of the shards."""
        began = time.monotonic()
        messages: list[Message] = []
        with deadline(conn, STATEMENT_SECONDS):
            shards = await self._claimer.take_shards(conn)
            if shards and self._routes.any_waiting(look.last_turn):
                allowance = await self._routes.allowance(conn, look.last_turn, max_rows)
                if allowance.keys:
                    most = most_of_key(max_rows), max_rows - max_rows // 4, max_bytes - max_bytes // 4
                    messages = await outbox_table.claim_parked(conn, shards, *allowance, *most)
            rows = max_rows - len(messages)
            size = max_bytes - sum(len(message.body) for message in messages)
            if shards and rows > 0 and size > 0 and look.last_id > self._mark.id:
                messages += await self._mark.claim(conn, shards, look.last_id, rows, size)
        self._session.stands()
        self._claimer.go_on()
        self._state.claimed(len(messages), len(shards), time.monotonic() - began)
        return messages


async def _record(conn: Connection, outcome: Outcome) -> None:
    """Write the outcome of a claim to its rows."""
    for reason, messages in outcome.park.items():
        await outbox_table.park(conn, outbox_table.ids_of(messages), reason)
    if outcome.block:
        await outbox_table.block(conn, outcome.block)
    if outcome.sent:
        await outbox_table.settle(conn, "sent", outbox_table.ids_of(outcome.sent))
    if outcome.unrouted:
        await outbox_table.settle(conn, "unrouted", outbox_table.ids_of(outcome.unrouted))
    through = [message for message in (*outcome.sent, *outcome.unrouted) if message.parked]
    if through:
        await outbox_table.remove_parked(conn, through)


async def _first_of(events: list[asyncio.Event], seconds: float | None) -> None:
    """Return when one of the events is set, or the time has passed."""
    waits = [asyncio.create_task(event.wait(), name="relay-pause") for event in events]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
