"""The pauses between the tries of one connection or call, in order."""

from collections.abc import Iterator
from itertools import count

from orders.runtime.backoff import backoff_seconds
from orders.runtime.timeouts import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS


def backoff(first: float = FIRST_PAUSE_SECONDS, longest: float = LONGEST_PAUSE_SECONDS) -> Iterator[float]:
    """Yield pauses in seconds: doubled from `first` up to `longest`, each with up to half of it taken off at random."""
    return (backoff_seconds(tries, first, longest) for tries in count(1))
