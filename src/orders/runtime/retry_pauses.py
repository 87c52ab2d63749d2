"""The pauses between tries, one after the other."""

from collections.abc import Iterator
from itertools import count

from orders.runtime.backoff import backoff_seconds
from orders.runtime.timeouts import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS


def backoff(first: float = FIRST_PAUSE_SECONDS, most: float = LONGEST_PAUSE_SECONDS) -> Iterator[float]:
    """Yield pauses in seconds: doubled from `first` up to `most`, each with up to half of it taken off at random."""
    return (backoff_seconds(tries, first, most) for tries in count(1))
