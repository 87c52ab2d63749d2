"""How many rows the next claim may have, and when it may come, where RELAY_RATE is set.

Claims are small and frequent, since a session that idles for long between two claims would be ended by the server.
"""

CLAIM_SECONDS = 0.25  # a claim may have the rows of so much time


class RateLimit:
    """Lets out `rate` rows a second; the caller passes the time, in monotonic seconds."""

    def __init__(self, rate: float) -> None:
        self._rate = rate  # rows a second; 0 is no limit
        self._next = 0.0

    def limit(self, max_rows: int) -> int:
        """Return how many rows the next claim may have: at least 1 and at most `max_rows`."""
        return min(max_rows, max(1, int(self._rate * CLAIM_SECONDS))) if self._rate else max_rows

    def wait(self, now: float) -> float:
        """Return the seconds until the next claim may come."""
        return max(0.0, self._next - now)

    def record(self, rows: int, now: float) -> None:
        """Count the rows that a claim had; the next one waits until the rate allows it."""
        if self._rate:
            self._next = max(self._next, now) + rows / self._rate
