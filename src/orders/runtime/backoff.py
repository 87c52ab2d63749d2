"""How long to wait before the next try."""

import random


def backoff_seconds(tries: int, first: float, longest: float, draw: float | None = None) -> float:
    """Return the pause in seconds after this many failed tries in a row: `first`, doubled each time, up to `longest`.

    Up to half of it is taken off at random (`draw`: 0 to 1), since callers that failed together would otherwise come
    back together. Nothing is added, so that no pause is longer than `longest`.
    """
    taken_off = 0.5 * (random.random() if draw is None else draw)  # no secret: it spreads load
    return float(min(longest, first * 2 ** min(tries - 1, 30)) * (1 - taken_off))
