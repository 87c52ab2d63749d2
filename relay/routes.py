"""The routes as one claimer uses them: which it may try, which it closes, and which the relay's state shows."""

import contextlib
import logging
import time
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import NamedTuple

from relay import outbox_table
from relay.database import Connection
from relay.mark import LowWaterMark
from relay.message import Route
from relay.route_health import RouteHealth
from relay.state import RelayState

log = logging.getLogger("relay")

PAGE = 1000  # waiting routes that one turn looks at; the next turn goes on behind them
# One statement reads so many turns at most. The first look of a session reads all that were ever taken: most are gone.
WINDOW_TURNS = 2_000_000
SEE_SECONDS = 0.5


class Allowance(NamedTuple):
    """The waiting keys that may be tried now."""

    keys: dict[Route, int]  # how many of each route
    turns: dict[Route, int]  # none of the route's has a turn below this one


class Routes:
    """The health of the routes, which all claimers share, and those that this claimer knows keys to wait for.

    Keys take turns from a sequence, a new one with each change. All turns up to `_seen` are known to this claimer, as
    the low-water mark knows ids: a look reads what is new, and nothing that has gone.
    """

    def __init__(self, health: RouteHealth, state: RelayState) -> None:
        self._health = health
        self._state = state
        self.forget()

    def forget(self) -> None:
        """Begin anew: after a crash of the server, keys may wait again that had gone."""
        self._waiting: dict[Route, int] = {}  # no key of the route has a turn below this one
        self._seen = 0
        self._turns = LowWaterMark(0)

    def is_open(self, route: Route) -> bool:
        """Return whether rows go straight to this route."""
        return self._health.is_open(route)

    def any_waiting(self, last_turn: int) -> bool:
        """Return whether keys wait, or may wait, that are not blocked; `last_turn` is the last one that was taken."""
        return bool(self._waiting) or last_turn > self._seen

    def being_tried(self, routes: Collection[Route]) -> contextlib.AbstractContextManager[None]:
        """Within the block, let no other claim of this relay probe these routes."""
        return self._health.being_tried(routes)

    def next_try(self, now: float) -> float | None:
        """Return when the next failed route is due for a probe, in monotonic seconds; None if none is."""
        return self._health.next_try(now)

    async def allowance(self, conn: Connection, last_turn: int, max_keys: int) -> Allowance:
        """Return how many waiting keys of each route may be tried now, of the routes whose turn it is."""
        saw_all = await self._see(conn, last_turn)
        allowed: dict[Route, int] = {}
        for route in list(islice(self._waiting, PAGE)):
            self._waiting[route] = self._waiting.pop(route)  # to the end: the next claim begins behind this page
            allowed |= self._health.allowance([route], time.monotonic(), max_keys)
        turns = {route: self._waiting[route] for route in allowed}
        firsts = await outbox_table.first_turns(conn, turns) if turns else {}
        for route, turn in firsts.items():
            if turn is None:
                del self._waiting[route], allowed[route]
            else:
                # A change that took a lower turn is seen as soon as it is committed.
                self._waiting[route] = turn
        if saw_all:
            self.only_these_wait(self._waiting, time.monotonic())
        return Allowance(allowed, {route: self._waiting[route] for route in allowed})

    async def _see(self, conn: Connection, last_turn: int) -> bool:
        """Learn which routes have keys with new turns, for at most `SEE_SECONDS`; return whether that was enough."""
        until = time.monotonic() + SEE_SECONDS
        if last_turn > self._seen:
            self._turns.observe(last_turn, await outbox_table.changers(conn))
        above = self._seen
        while above < last_turn and time.monotonic() < until:
            upto = min(last_turn, above + WINDOW_TURNS)
            for route, turn in (await outbox_table.new_routes(conn, above, upto)).items():
                self._waiting[route] = min(turn, self._waiting.get(route, turn))
            above = upto
        self._seen = max(self._seen, min(above, self._turns.settled))
        return above >= last_turn

    def only_these_wait(self, routes: Collection[Route], now: float) -> None:
        """Open the failed routes that no key waits for; `routes` are all that keys wait for."""
        self._health.forget_all_but(routes, now)
        self.show()

    def fail(self, reasons: Mapping[Route, str]) -> None:
        """Close routes that do not take messages, each for its reason."""
        for route, reason in reasons.items():
            self._health.failed(route, time.monotonic(), reason)
            log.warning("route %s does not take messages: %s", route, reason)

    def passed(self, routes: Iterable[Route]) -> None:
        """Widen the routes that took every message of a wave."""
        for route in routes:
            self._health.passed(route)

    def show(self) -> None:
        """Show the closed routes in the relay's state."""
        self._state.closed_routes = self._health.report()
