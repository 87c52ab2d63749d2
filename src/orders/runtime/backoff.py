"""How long to wait before the next try."""

import random


def backoff_seconds(tries: int, first: float, longest: float, draw: float | None = None) -> float:
    """Return the pause after this many failed tries in a row: doubled each time, up to half of it taken off at random.

    At random, because those that failed together would otherwise come back together. Only taken off, because nobody
    waits for more than `longest`.
    """
    taken_off = 0.5 * (random.random() if draw is None else draw)  # no secret: it spreads load
    return float(min(longest, first * 2 ** min(tries - 1, 30)) * (1 - taken_off))
