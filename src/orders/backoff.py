"""How long to wait before trying a server again."""

import random
from collections.abc import Iterator


def backoff(first: float = 0.05, most: float = 0.5) -> Iterator[float]:
    """Yield pauses in seconds: doubled from `first` up to `most`, each with up to half of jitter taken off."""
    pause = first
    while True:
        yield pause * random.uniform(0.5, 1)
        pause = min(pause * 2, most)
