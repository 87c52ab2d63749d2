"""Which routes take messages, and when those that failed are tried again.

A route that fails is probed with one key. Each success lets out eight times as many keys as the one before, so that a
queue with room for ten messages does not get ten thousand. The caller passes the time, in monotonic seconds.
"""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from relay.backoff import backoff_seconds
from relay.message import Route

FIRST_SECONDS = 0.1  # the first pause before a probe
WIDENING = 8
WIDE_OPEN = 512  # keys; a route that took so many is open again


class _FailingRoute:
    __slots__ = ("keys", "reason", "tries", "until")

    def __init__(self) -> None:
        self.tries = 0  # failures in a row
        self.until = 0.0  # no probe before this time
        self.keys = 1  # let out at the next probe
        self.reason = ""  # of the last failure


class RouteHealth:
    """The routes that failed and have not recovered; every other route is open."""

    def __init__(self, longest_seconds: float) -> None:
        """Pause for at most `longest_seconds` before the next probe of a route."""
        self._longest_seconds = longest_seconds
        self._failing: dict[Route, _FailingRoute] = {}
        self._in_claims: Counter[Route] = Counter()

    @contextlib.contextmanager
    def being_tried(self, routes: Collection[Route]) -> Iterator[None]:
        """Within the block, let no other claim probe these routes, nor forget that they failed.

        Otherwise one route that does not answer would hold up all claims at once.
        """
        self._in_claims.update(routes)
        try:
            yield
        finally:
            self._in_claims.subtract(routes)
            self._in_claims = +self._in_claims

    def failed(self, route: Route, now: float, reason: str) -> None:
        """Close a route that did not take a message: the next try is a probe with one key, after a pause."""
        failing = self._failing.setdefault(route, _FailingRoute())
        failing.tries += 1
        failing.until = now + backoff_seconds(failing.tries, FIRST_SECONDS, self._longest_seconds)
        failing.keys = 1
        failing.reason = reason

    def passed(self, route: Route) -> None:
        """Widen a route that took every message it was given, or open it again."""
        failing = self._failing.get(route)
        if failing is None:
            return
        failing.tries = 0
        failing.until = 0.0
        failing.keys *= WIDENING
        if failing.keys >= WIDE_OPEN:
            del self._failing[route]

    def is_open(self, route: Route) -> bool:
        """Return whether rows go straight to this route; otherwise they are parked, and claimed by `allowance`."""
        return route not in self._failing

    def allowance(self, routes: Iterable[Route], now: float, max_keys: int) -> dict[Route, int]:
        """Return how many waiting keys of each route may be tried now; a route that may not be tried is left out."""
        allowed: dict[Route, int] = {}
        for route in routes:
            failing = self._failing.get(route)
            if failing is None:
                allowed[route] = max_keys
            elif failing.until <= now and not self._in_claims[route]:
                allowed[route] = min(max_keys, failing.keys)
        return allowed

    def forget_all_but(self, routes: Collection[Route], now: float) -> None:
        """Open each route that is due, is not in `routes` and not being tried.

        `routes` are all that keys wait for. A key that waited for another one has been delivered, perhaps by another
        relay, which found that route open.
        """
        for route, failing in list(self._failing.items()):
            if failing.until <= now and route not in routes and not self._in_claims[route]:
                del self._failing[route]

    def next_try(self, now: float) -> float | None:
        """Return when the next route is due for a probe, in monotonic seconds; None if no route is due later than now.

        A route that is due already does not count: this turn tries it.
        """
        return min((failing.until for failing in self._failing.values() if failing.until > now), default=None)

    def report(self) -> dict[str, str]:
        """Return the reason of the last failure of each route that is not open, by `exchange/routing_key`."""
        return {str(route): failing.reason for route, failing in self._failing.items()}
