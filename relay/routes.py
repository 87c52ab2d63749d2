"""The routes as one claimer uses them: which it may try, which it closes, and which the relay's state shows."""

import contextlib
import logging
import time
from collections.abc import Collection, Iterable, Mapping

from relay import outbox_table
from relay.database import Connection
from relay.message import Route
from relay.route_health import RouteHealth
from relay.state import RelayState

log = logging.getLogger("relay")

PAGE = 1000  # waiting routes that one turn looks at; the next turn goes on behind them


class Routes:
    """The health of the routes, which all claimers share, and this claimer's place among the waiting ones."""

    def __init__(self, health: RouteHealth, state: RelayState) -> None:
        self._health = health
        self._state = state
        self._behind: Route | None = None  # the next page begins behind this route

    def is_open(self, route: Route) -> bool:
        """Return whether rows go straight to this route."""
        return self._health.is_open(route)

    def being_tried(self, routes: Collection[Route]) -> contextlib.AbstractContextManager[None]:
        """Within the block, let no other claim of this relay probe these routes."""
        return self._health.being_tried(routes)

    def next_try(self, now: float) -> float | None:
        """Return when the next failed route is due for a probe, in monotonic seconds; None if none is."""
        return self._health.next_try(now)

    async def allowance(self, conn: Connection, max_keys: int) -> dict[Route, int]:
        """Return how many waiting keys of each route may be tried now, from the next page of waiting routes."""
        waiting = await outbox_table.routes_waiting(conn, self._behind, PAGE)
        now = time.monotonic()
        if self._behind is None and len(waiting) < PAGE:
            self.only_these_wait(waiting, now)
        self._behind = waiting[-1] if len(waiting) == PAGE else None
        return self._health.allowance(waiting, now, max_keys)

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
