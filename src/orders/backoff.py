"""How long to wait before trying a server again."""

import random
from collections.abc import Iterator

from orders.deadlines import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS


def backoff(first: float = FIRST_PAUSE_SECONDS, most: float = LONGEST_PAUSE_SECONDS) -> Iterator[float]:
    """Yield pauses in seconds: doubled from `first` up to `most`, each with up to half of jitter taken off."""
    pause = first
    while True:
        yield pause * random.uniform(0.5, 1)
        pause = min(pause * 2, most)
