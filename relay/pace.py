"""How many rows may go now, where a rate is set: many small portions, so that no claim's session idles for long."""

PORTION_SECONDS = 0.25


class Pace:
    """Lets out so many rows a second. The clock is the caller's."""

    def __init__(self, rate: float) -> None:
        self._rate = rate  # 0 is no limit
        self._next = 0.0

    def portion(self, most: int) -> int:
        """Return how many rows one claim may have."""
        return min(most, max(1, int(self._rate * PORTION_SECONDS))) if self._rate else most

    def wait(self, now: float) -> float:
        """Return how long it is until the next claim."""
        return max(0.0, self._next - now)

    def took(self, rows: int, now: float) -> None:
        """So many rows were claimed."""
        if self._rate:
            self._next = max(self._next, now) + rows / self._rate
