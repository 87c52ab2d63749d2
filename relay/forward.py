"""The loop: claim rows, publish them wave by wave, record what became of them, move the mark.

The claiming transaction is the lease: it holds the shards' locks and the rows', and both vanish with the connection.
It is never held while the broker is away, and never for longer than `hold_seconds` and one wait for confirms.

While there is a backlog, a relay makes several claims in parallel, each by a claimer with connections of its own: one
claims and records while another waits for its confirms. To each other they are like two relays.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from relay import outbox_table
from relay.backoff import backoff_seconds
from relay.database import STATEMENT_SECONDS, Connection, DatabaseLost, connect, deadline
from relay.guard import Guard
from relay.mark import LowWaterMark
from relay.message import Answer, Message, Reply, Route
from relay.outcome import Outcome
from relay.publisher import BrokerBlocked, BrokerLost, Publisher
from relay.rate_limit import RateLimit
from relay.replies import Rejected, RouteFailure, classify
from relay.route_health import RouteHealth
from relay.settings import Settings
from relay.severing import close
from relay.state import RelayState
from relay.waves import Waves, sort_out

log = logging.getLogger("relay")

T = TypeVar("T")
Look = Callable[[set[Route]], Coroutine[Any, Any, dict[Route, str]]]  # at whether routes led to their queues

PROOF_SECONDS = 0.3  # a claim is proven to stand this often: a fifth of what the server has patience for
PROOF_DEADLINE_SECONDS = 1.0
MARK_SECONDS = 0.1  # between two moves of the mark while there is work
SAVE_SECONDS = 2.0  # between two savings of the mark
PRESENCE_SECONDS = 1.0
GUARD_SECONDS = 0.3  # between two looks for a required queue that is not there
RETRY_FIRST_SECONDS, RETRY_LONGEST_SECONDS = 0.05, 0.5
BACKLOG_SECONDS = 1.0  # without a full claim for so long, there is no backlog
ROUTES = 1000  # that are waited for, and looked at in one turn; the next turn takes the next ones
BUSY_PAUSE_SECONDS = 0.005  # first pause while rows are about that others hold or that are not committed


class SequenceCached(Exception):
    """The outbox's sequence hands out ids in blocks, so that the mark would not be exact."""


class ParallelClaims:
    """What the claimers of one relay share: the health of the routes, and whether there is a backlog."""

    def __init__(self, settings: Settings) -> None:
        self.health = RouteHealth(settings.probe_seconds)
        self.backlog = asyncio.Event()


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
        self._settings = settings
        self._is_first = is_first
        self._backlog = claims.backlog
        self._claimers = 1
        self._full_at = 0.0
        self._publisher = publisher
        self._guard = guard
        self._state = state
        self._wake = wake
        self._health = claims.health
        self._rate_limit = RateLimit(settings.rate)
        self._conn: Connection | None = None
        self._mark = LowWaterMark(0)
        self._saved = 0
        self._save_at = 0.0
        self._mark_at = 0.0
        self._guard_at = 0.0
        self._presence_at = 0.0
        self._proven_at = 0.0
        self._first_shard = random.randrange(outbox_table.SHARDS)  # no secret: it spreads relays
        self._looks_in_vain = 0
        self._routes_behind: Route | None = None  # where the next look at the routes that are waited for begins
        self._clock_offset = 0.0  # from our monotonic clock to the database's

    async def run(self, stop: asyncio.Event) -> None:
        """Forward until told to stop; the batch in hand is finished first."""
        failures = 0
        while not stop.is_set():
            if not self._is_first and not self._backlog.is_set():
                await self._rest(stop)
                continue
            self._state.turned()
            try:
                conn = await self._ready()
                pause = await self._turn(conn)
                failures = 0
            except DatabaseLost as lost:
                failures += 1
                self._state.database_lost.inc()
                self._state.database = "disconnected"
                log.warning("database lost: %s", lost)
                await self._disconnect()
                pause = backoff_seconds(failures, RETRY_FIRST_SECONDS, RETRY_LONGEST_SECONDS)
            except BrokerLost as lost:
                failures += 1
                self._state.broker_lost.inc()
                self._state.broker = "blocked" if isinstance(lost, BrokerBlocked) else "disconnected"
                log.warning("broker lost: %s", lost)
                if not isinstance(lost, BrokerBlocked):
                    self._publisher.drop()
                # Without a broker nothing is claimed: no transaction, no share of the shards.
                await self._disconnect()
                pause = backoff_seconds(failures, RETRY_FIRST_SECONDS, RETRY_LONGEST_SECONDS)
            if pause > 0 and not stop.is_set():
                await self._pause(pause, stop, woken=failures == 0)
        await self._save_mark()
        await self._disconnect()

    async def _pause(self, seconds: float, stop: asyncio.Event, woken: bool) -> None:
        """Wait for the time to pass, for a signal, or, if there is no trouble, for a writer's word."""
        await _first_of([stop, self._wake] if woken else [stop], seconds)
        if woken:
            self._wake.clear()

    async def _rest(self, stop: asyncio.Event) -> None:
        """Leave everything to the first claimer until there is a backlog: an idle relay has one of each connection."""
        await self._save_mark()
        await self._disconnect()
        await self._publisher.close()
        self._guard.forget()
        await _first_of([stop, self._backlog], None)

    async def _ready(self) -> Connection:
        """Return the claiming connection, with the broker connected too."""
        if not self._publisher.is_connected:
            await self._publisher.connect()
        if self._publisher.is_blocked:
            raise BrokerBlocked("a memory or disk alarm holds the connection")
        self._state.broker = "connected"
        if self._conn is None:
            self._conn = await self._connect()
        return self._conn

    async def _connect(self) -> Connection:
        conn = await connect(self._settings.database_url, "relay", outbox_table.SESSION)
        try:
            with deadline(conn, STATEMENT_SECONDS):
                mark, cache, last_value = await outbox_table.read_mark(conn)
                await outbox_table.be_present(conn, self._is_first)
        except BaseException:
            await close(conn)
            raise
        if cache != 1:
            await close(conn)
            raise SequenceCached(
                f"outbox_id_seq has CACHE {cache}: run `ALTER SEQUENCE outbox_id_seq CACHE 1`, the order depends on it"
            )
        # The persisted mark, not the one in memory: a crash of the server undoes what was marked asynchronously.
        # A mark above the sequence means that the sequence was set back, so it is worth nothing.
        self._mark = LowWaterMark(mark if mark <= last_value else 0)
        self._saved = mark
        self._tell_mark()
        self._state.database = "connected"
        self._proven_at = time.monotonic()
        return conn

    async def _disconnect(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            await close(conn)

    async def _turn(self, conn: Connection) -> float:
        """Look, forward one batch if there is any, move the mark; return how long to pause."""
        now = time.monotonic()
        if now >= self._presence_at:
            self._presence_at = now + PRESENCE_SECONDS
            with deadline(conn, STATEMENT_SECONDS):
                relays, claimers = await outbox_table.count_present(conn)
            self._state.relays, self._claimers = max(1, relays), max(1, claimers)
        if not self._guard.is_complete and now >= self._guard_at:
            self._guard_at = now + GUARD_SECONDS
            await self._guard.complete(conn)
        with deadline(conn, STATEMENT_SECONDS):
            upto, waiting, database_time = await outbox_table.look(conn)
        self._clock_offset = database_time - time.monotonic()
        self._state.polls.inc()
        if not waiting:
            self._clear_up([], now)
        due = self._health.next_try(now)
        pause = self._settings.poll_seconds if due is None else min(self._settings.poll_seconds, due - now)
        limited = self._rate_limit.wait(now)
        if limited:
            pause = min(self._settings.poll_seconds, limited)
        elif upto > self._mark.mark or waiting:
            claimed, more = await self._forward_batch(conn, upto, waiting)
            self._looks_in_vain = 0 if claimed else self._looks_in_vain + 1
            if more or self._looks_in_vain < self._claimers:
                pause = 0.0
            elif upto > self._mark.mark:
                # Someone else has these rows in hand, or they are not committed, or will never be.
                pause = min(pause, BUSY_PAUSE_SECONDS * 2 ** min(self._looks_in_vain, 10))
            self._rate_limit.record(claimed, now)
            await self._move_mark(conn, idle=not claimed)
        else:
            self._looks_in_vain = 0
            self._tell_backlog(full=False)
        if now >= self._save_at:
            # Also when there is nothing to do: the mark's last move may be what lets the keeper drop a partition.
            self._save_at = now + SAVE_SECONDS
            await self._save_mark()
        return pause

    def _tell_backlog(self, full: bool) -> None:
        """Call the other claimers when one claim does not take all rows, and let them rest when it long has."""
        now = time.monotonic()
        if full:
            self._full_at = now
            self._backlog.set()
        elif self._is_first and now - self._full_at > BACKLOG_SECONDS:
            self._backlog.clear()

    def _tell_mark(self) -> None:
        if self._is_first:
            self._state.mark = self._mark.mark

    async def _forward_batch(self, conn: Connection, upto: int, waiting: bool) -> tuple[int, bool]:
        """Claim, publish, record, in one transaction; return how many rows were claimed, and whether to go right on."""
        most, most_bytes = self._rate_limit.limit(self._settings.batch_rows), self._settings.batch_bytes
        share = -(-outbox_table.SHARDS // self._claimers)
        async with self._transaction(conn):
            began = time.monotonic()
            with deadline(conn, STATEMENT_SECONDS):
                shards = await outbox_table.take_shards(conn, self._first_shard, share)
                messages: list[Message] = []
                if shards and waiting:
                    messages = await self._claim_parked(conn, shards, most)
                rows = most - len(messages)
                size = most_bytes - sum(len(message.body) for message in messages)
                if shards and rows > 0 and size > 0 and upto > self._mark.mark:
                    messages += await outbox_table.claim(conn, shards, self._mark.mark, upto, rows, size)
            self._proven_at = time.monotonic()
            self._first_shard = (self._first_shard + share) % outbox_table.SHARDS
            self._state.shards_held.set(len(shards))
            self._state.poll_seconds.observe((self._proven_at - began,))
            if not messages:
                self._tell_backlog(full=False)
                return 0, False
            self._state.batch_rows.observe((len(messages),))
            with self._health.being_tried({message.route for message in messages}):
                publish, park = sort_out(messages, self._health.is_open)
                outcome, left = await self._publish(conn, publish)
                confirmed = time.monotonic()
                required = {message.route for message in outcome.sent if message.required}
                await self._withdraw_unproven(conn, outcome, required, self._guard.after)
                behind = [message for message in park if message.key not in left]
                if behind:
                    outcome.park["its key or its route waits"] = behind
                with deadline(conn, STATEMENT_SECONDS):
                    await self._record(conn, outcome)
        self._count(outcome, confirmed)
        full = len(messages) >= most or sum(len(m.body) for m in messages) * 2 > most_bytes
        settled = len(outcome.sent) + len(outcome.unrouted) + sum(map(len, outcome.park.values()))
        self._tell_backlog(full)
        return len(messages), full or settled > 0

    async def _claim_parked(self, conn: Connection, shards: list[int], most: int) -> list[Message]:
        routes = await outbox_table.routes_waiting(conn, self._routes_behind, ROUTES)
        now = time.monotonic()
        if self._routes_behind is None and len(routes) < ROUTES:
            self._clear_up(routes, now)
        self._routes_behind = routes[-1] if len(routes) == ROUTES else None
        allowance = self._health.allowance(routes, now, most)
        if not allowance:
            return []
        return await outbox_table.claim_parked(conn, shards, allowance, most, self._settings.batch_bytes)

    def _clear_up(self, waiting: list[Route], now: float) -> None:
        self._health.forget_all_but(waiting, now)
        self._state.closed_routes = self._health.report()

    @contextlib.asynccontextmanager
    async def _transaction(self, conn: Connection) -> AsyncIterator[None]:
        """Begin and commit by deadline; on any failure the connection goes, and the transaction with it."""
        with deadline(conn, STATEMENT_SECONDS):
            await conn.execute("BEGIN")
        try:
            yield
        except BaseException:
            await self._disconnect()
            raise
        with deadline(conn, STATEMENT_SECONDS):
            await conn.execute("COMMIT")

    async def _publish(self, conn: Connection, messages: list[Message]) -> tuple[Outcome, set[str]]:
        """Publish in waves until all are through, or the claim has been held long enough.

        Return what became of them, and the keys of which a row is left as it was.
        """
        outcome = Outcome()
        waves = Waves(messages)
        until = time.monotonic() + self._settings.hold_seconds
        required = {message.route for message in messages if message.required}
        closed = await self._while_proving(conn, self._guard.before(required), "relay-guard")
        self._close_routes(closed)
        doubtful: set[Route] = set()
        while wave := waves.next():
            if await self._withdraw_unproven(conn, outcome, doubtful, self._guard.between):
                break  # what is left would go before what was withdrawn
            await self._prove(conn, PROOF_SECONDS)
            going = [message for message in wave if message.route not in closed]
            went = {message.route for message in going}
            doubtful = went & required
            replies = await self._publish_wave(conn, going, doubtful, until) if going else {}
            for message in wave:
                if message.route in closed and message.id not in replies:
                    reply: Reply | None = Reply(Answer.WITHHELD, closed[message.route])
                else:
                    reply = replies.get(message.id)
                self._apply(message, reply, waves, outcome, closed)
            for route in went - closed.keys():
                self._health.passed(route)
            self._state.closed_routes = self._health.report()
            if time.monotonic() >= until:
                break
        return outcome, waves.left()

    def _apply(
        self, message: Message, reply: Reply | None, waves: Waves, outcome: Outcome, closed: dict[Route, str]
    ) -> None:
        """Sort one answered message into the outcome; one without an answer stays as it is, with those behind it."""
        if reply is None:
            waves.put_off(message)
            return
        classified = classify(message, reply)
        outcome.take(message, classified, waves)
        match classified:
            case RouteFailure(reason):
                self._count_failure(reply)
                if message.route not in closed:
                    closed[message.route] = reason
                    self._close_routes({message.route: reason})
            case Rejected(reason):
                self._state.refused.inc()
                log.error("row %d of key %r is rejected and blocks its key: %s", message.id, message.key, reason)

    def _close_routes(self, reasons: Mapping[Route, str]) -> None:
        for route, reason in reasons.items():
            self._health.failed(route, time.monotonic(), reason)
            log.warning("route %s does not take messages: %s", route, reason)

    async def _withdraw_unproven(self, conn: Connection, outcome: Outcome, routes: set[Route], look: Look) -> bool:
        """Nothing required counts as sent before its queue was seen to have been there for its confirm.

        Return whether something had to be taken back.
        """
        if not routes:
            return False
        unproven = await self._while_proving(conn, look(routes), "relay-guard")
        if not unproven:
            return False
        outcome.withdraw(unproven)
        self._close_routes(unproven)
        self._state.closed_routes = self._health.report()
        return True

    def _count_failure(self, reply: Reply) -> None:
        match reply.answer:
            case Answer.RETURNED:
                self._state.returned.inc()
            case Answer.NACKED:
                self._state.nacked.inc()
            case Answer.UNANSWERED:
                self._state.unanswered.inc()

    async def _publish_wave(
        self, conn: Connection, wave: list[Message], required: set[Route], until: float
    ) -> dict[int, Reply]:
        """Publish one wave, and say how long it took to be answered."""
        began = time.monotonic()
        async with self._guard.watching(required):
            replies = await self._while_proving(conn, self._publisher.publish(wave, until), "relay-publish")
        self._state.answered(time.monotonic() - began)
        return replies

    async def _while_proving(self, conn: Connection, work: Coroutine[Any, Any, T], name: str) -> T:
        """Do this, proving meanwhile that the claim stands; if it does not, nothing more is done."""
        task = asyncio.create_task(work, name=name)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=PROOF_SECONDS)
                if not task.done():
                    await self._prove(conn, 0.0)
                    self._state.turned()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        return task.result()

    async def _prove(self, conn: Connection, older_than: float) -> None:
        """Ask the server whether the claiming transaction still stands, unless it was proven just now."""
        if time.monotonic() - self._proven_at < older_than:
            return
        with deadline(conn, PROOF_DEADLINE_SECONDS):
            await conn.execute("SELECT 1")
        self._proven_at = time.monotonic()

    async def _record(self, conn: Connection, outcome: Outcome) -> None:
        """Write down what became of the claim's rows."""
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

    def _count(self, outcome: Outcome, confirmed: float) -> None:
        if outcome.sent:
            now = confirmed + self._clock_offset
            self._state.confirmed([now - message.created for message in outcome.sent])
        self._state.unrouted.inc(len(outcome.unrouted))
        self._state.parked.inc(sum(map(len, outcome.park.values())))

    async def _move_mark(self, conn: Connection, idle: bool) -> None:
        """Let the mark follow what is settled. Each step is a statement of its own, in this order: see mark.py."""
        now = time.monotonic()
        if not idle and now < self._mark_at:
            return
        self._mark_at = now + MARK_SECONDS
        mark = self._mark
        with deadline(conn, STATEMENT_SECONDS):
            last_value, _, _ = await outbox_table.look(conn)
            mark.observe(last_value, await outbox_table.writers(conn))
            if mark.settled > mark.mark:
                mark.advance(await outbox_table.lowest_pending(conn, mark.mark, mark.settled))
        self._tell_mark()

    async def _save_mark(self) -> None:
        """Persist the mark, rarely: each UPDATE of one small row leaves a dead version behind."""
        if self._conn is None or self._mark.mark <= self._saved:
            return
        with contextlib.suppress(DatabaseLost), deadline(self._conn, STATEMENT_SECONDS):
            await outbox_table.save_mark(self._conn, self._mark.mark)
            self._saved = self._mark.mark


async def _first_of(events: list[asyncio.Event], seconds: float | None) -> None:
    """Return when one of the events is set, or the time has passed."""
    waits = [asyncio.create_task(event.wait(), name="relay-pause") for event in events]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
