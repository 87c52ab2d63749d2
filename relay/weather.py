"""Which routes take messages, and when those that do not are tried again.

A route that fails is probed by one key at a time; each success widens the way eightfold, so that a queue with
room for ten is not met with ten thousand. The clock is the caller's.
"""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from relay.backoff import backoff_seconds
from relay.message import Route

FIRST_SECONDS = 0.1
WIDENING = 8
WIDE_OPEN = 512


class _Storm:
    __slots__ = ("keys", "reason", "tries", "until")

    def __init__(self) -> None:
        self.tries = 0
        self.until = 0.0
        self.keys = 1
        self.reason = ""


class Weather:
    """The routes that do not take messages at will."""

    def __init__(self, longest_seconds: float) -> None:
        self._longest_seconds = longest_seconds
        self._storms: dict[Route, _Storm] = {}
        self._tried: Counter[Route] = Counter()

    @contextlib.contextmanager
    def trying(self, routes: Collection[Route]) -> Iterator[None]:
        """Have nobody else probe these routes, nor think that nothing waits for them, before this claim is recorded.

        A route that does not answer would hold up every lane at once.
        """
        self._tried.update(routes)
        try:
            yield
        finally:
            self._tried.subtract(routes)
            self._tried = +self._tried

    def failed(self, route: Route, now: float, reason: str) -> None:
        """The route did not take a message: one probe, later."""
        storm = self._storms.setdefault(route, _Storm())
        storm.tries += 1
        storm.until = now + backoff_seconds(storm.tries, FIRST_SECONDS, self._longest_seconds)
        storm.keys = 1
        storm.reason = reason

    def passed(self, route: Route) -> None:
        """The route took all that it was given: more next time."""
        storm = self._storms.get(route)
        if storm is None:
            return
        storm.tries = 0
        storm.until = 0.0
        storm.keys *= WIDENING
        if storm.keys >= WIDE_OPEN:
            del self._storms[route]

    def is_open(self, route: Route) -> bool:
        """Say whether rows go straight to this route; if not, they are parked and let out by `allowance`."""
        return route not in self._storms

    def allowance(self, routes: Iterable[Route], now: float, most: int) -> dict[Route, int]:
        """Return how many waiting keys of each route may be tried now; a route that may not be is left out."""
        allowed: dict[Route, int] = {}
        for route in routes:
            storm = self._storms.get(route)
            if storm is None:
                allowed[route] = most
            elif storm.until <= now and not self._tried[route]:
                allowed[route] = min(most, storm.keys)
        return allowed

    def forget_all_but(self, routes: Collection[Route], now: float) -> None:
        """Nothing waits for the other routes: of those that are due, whoever delivered what did has found them open."""
        for route, storm in list(self._storms.items()):
            if storm.until <= now and route not in routes and not self._tried[route]:
                del self._storms[route]

    def next_try(self, now: float) -> float | None:
        """Return when the next route will be due for a probe, or None: those that are due are for this very turn."""
        return min((storm.until for storm in self._storms.values() if storm.until > now), default=None)

    def report(self) -> dict[str, str]:
        """Return what each closed route said last."""
        return {str(route): storm.reason for route, storm in self._storms.items()}
