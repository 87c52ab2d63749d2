"""The parallel claims of one relay: which shards each claimer takes, whether it has work, and how long it pauses.

One claimer is enough for an idle relay. While there is a backlog the others join it; the database's locks keep them
apart, as they keep relays apart.
"""

import asyncio
import random
import time

from relay import outbox_table
from relay.database import STATEMENT_SECONDS, Connection, deadline
from relay.outbox_table import SHARDS
from relay.route_health import RouteHealth
from relay.settings import Settings
from relay.state import RelayState

PRESENCE_SECONDS = 1.0  # between two counts of the relays and claimers
BACKLOG_SECONDS = 1.0  # without a full claim for so long, there is no backlog
BUSY_PAUSE_SECONDS = 0.005  # first pause while rows are there that others have claimed or have not committed
MOST_DOUBLINGS = 10


class ParallelClaims:
    """What the claimers of one relay share: the health of the routes, and whether there is a backlog."""

    def __init__(self, settings: Settings) -> None:
        self.health = RouteHealth(settings.probe_seconds)
        self.backlog = asyncio.Event()


class Claimer:
    """One of the parallel claims: its share of the shards, and of the backlog."""

    def __init__(self, backlog: asyncio.Event, state: RelayState, *, is_first: bool) -> None:
        """`backlog` is set while one claim at a time does not take all rows; the first claimer clears it."""
        self.is_first = is_first
        self.backlog = backlog
        self._state = state
        self._claimers = 1  # of all relays
        self._count_at = 0.0
        self._full_at = 0.0
        self._first_shard = random.randrange(SHARDS)  # no secret: it spreads relays
        self._empty_claims = 0  # in a row

    @property
    def has_work(self) -> bool:
        """Whether this claimer has to claim; if not, it waits for `backlog`."""
        return self.is_first or self.backlog.is_set()

    @property
    def share(self) -> int:
        """How many shards this claimer takes: all of them divided among all claimers, rounded up."""
        return -(-SHARDS // self._claimers)

    async def count_others(self, conn: Connection, now: float) -> None:
        """Count relays and claimers, at most every `PRESENCE_SECONDS`; raises DatabaseLost."""
        if now >= self._count_at:
            self._count_at = now + PRESENCE_SECONDS
            with deadline(conn, STATEMENT_SECONDS):
                present = await outbox_table.count_present(conn)
            self._state.relays, self._claimers = max(1, present.relays), max(1, present.claimers)

    @property
    def next_shards(self) -> tuple[int, int]:
        """The shard that the next claim begins with, and how many it takes at most: this claimer's share."""
        return self._first_shard, self.share

    def go_on(self) -> None:
        """Begin the next claim at the shards that follow those of this one."""
        self._first_shard = (self._first_shard + self.share) % SHARDS

    def record(self, *, full: bool) -> None:
        """Record whether a claim was full: call the other claimers, or let them rest when there is no backlog."""
        now = time.monotonic()
        if full:
            self._full_at = now
            self.backlog.set()
        elif self.is_first and now - self._full_at > BACKLOG_SECONDS:
            self.backlog.clear()

    def found_nothing(self) -> None:
        """Record that there was nothing to claim."""
        self._empty_claims = 0
        self.record(full=False)

    def pause_after(self, claimed_rows: int, *, more: bool, above_mark: bool, longest: float) -> float:
        """Return how many seconds to pause after a claim, at most `longest`.

        `more`: the claim has settled or parked rows, so others may follow. `above_mark`: there are ids above the mark.
        """
        self._empty_claims = 0 if claimed_rows else self._empty_claims + 1
        if more or self._empty_claims < self._claimers:
            return 0.0
        if above_mark:
            # Another claimer has these rows, or they are not committed yet, or will never be.
            return min(longest, BUSY_PAUSE_SECONDS * 2.0 ** min(self._empty_claims, MOST_DOUBLINGS))
        return longest
